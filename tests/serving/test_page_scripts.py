"""Scripts of the page by themselves, in node: the words for errors, and the colour it begins with."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from serving.page import page_files

_TOLD = "const answer = {status: given[0], json: async () => given[1]}; show((await problem(answer)).message);"


def shown(name: str, imported: str, code: str, given: Any) -> Any:  # noqa: ANN401  # JSON
    """Return what JavaScript shows that imports a name of a file of the page."""
    if shutil.which("node") is None:
        pytest.skip("no node on the PATH")
    script = page_files()[name].body.decode() + (
        f"\nconst show = (found) => console.log(JSON.stringify(found));\nconst given = {json.dumps(given)};\n{code}"
    )
    assert f"function {imported}(" in script
    done = subprocess.run(
        ["node", "--input-type=module"], input=script, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("status", "code", "message", "words"),
    [
        (401, "no_key", "send a key", "This server asks for an access key. Type it at the top right."),
        (401, "invalid_key", "this key is not known here", "This key is not known here"),
        (401, "expired_key", "the key 'ana' was good until 2026-01-01", "The key 'ana' was good until 2026-01-01"),
        (403, "scope_missing", "this needs the scope 'perturb'", "This needs the scope 'perturb'"),
        (429, "busy", "the model is full", "The server has too much to do. Try again in a moment. The model is full"),
    ],
)
def test_errors_are_the_servers_words(status: int, code: str, message: str, words: str) -> None:
    """Only where no key was given the page says where it has to be typed."""
    assert shown("api.js", "problem", _TOLD, [status, {"error": {"code": code, "message": message}}]) == words


def test_an_answer_of_something_else_is_told_by_its_status() -> None:
    assert shown("api.js", "problem", _TOLD, [403, {}]) == "The server answered 403."


_BARCODES = [f"AAAC{i}-1" for i in range(60)]


@pytest.mark.parametrize(
    ("obs", "first"),
    [
        ({"barcode": _BARCODES, "one": 60 * ["x"], "n_genes": list(range(60)), "type": 30 * ["T", "B"]}, "type"),
        ({"barcode": _BARCODES, "n_genes": list(range(60))}, "n_genes"),
        ({"type": [*29 * ["T", "B"], None, None], "barcode": _BARCODES}, "type"),
        ({"barcode": _BARCODES}, ""),
        ({"barcode": [*_BARCODES[:50], *10 * [None]]}, ""),
        ({"clone": [f"c{i // 2}" for i in range(120)]}, "clone"),
        ({"empty": 60 * [None], "one": 60 * ["x"]}, ""),
        ({}, ""),
    ],
)
def test_the_first_colours_are_groups_and_no_names_of_cells(obs: dict[str, list[Any]], first: str) -> None:
    assert shown("colours.js", "firstColumn", "show(firstColumn(given));", obs) == first
