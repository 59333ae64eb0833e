"""House rules that a checker can see: names, sizes, what importing costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SOURCES = [p for folder in ("platform", "jobs", "serving") for p in sorted((REPOSITORY / folder).rglob("*.py"))]


def test_platform_is_no_package() -> None:
    """`platform/__init__.py` would shadow the standard library's `platform`."""
    assert not (REPOSITORY / "platform" / "__init__.py").exists()


def test_no_script_bears_a_standard_library_name() -> None:
    """`jobs/tokenize.py`, run as a script, would break Python."""
    scripts = {p.stem for folder in ("jobs", "serving") for p in (REPOSITORY / folder).glob("*.py")}
    assert not (scripts - {"__init__"}) & set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_importing_cellray_loads_nothing_heavy() -> None:
    heavy = "ray torch transformers mlflow anndata numpy pyarrow numba"
    code = f"import sys, cellray; print([m for m in {heavy.split()} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_foundation_loads_no_ray_or_torch() -> None:
    code = (
        "import sys, cellray.config, cellray.schema, cellray.storage, cellray.vocabulary, cellray.rank_value;"
        "import cellray.api.wire;"
        "print([m for m in ('ray', 'torch', 'transformers', 'mlflow') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
