"""The quality control job on Ray: same bytes for any number of workers, report, pictures, refused options."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cellray.data.quality.mitochondrial import HUMAN
from cellray.data.quality.plan import QualityConfig
from cellray.errors import InputError
from jobs import quality_control
from tests.conftest import random_counts
from tests.jobs.test_jobs import run

Make = Callable[..., Path]


def test_the_job_gives_the_same_bytes_for_any_number_of_workers(
    ray_session: None, make_h5ad: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    var = pd.DataFrame(index=[*(f"ENSG{i:011d}" for i in range(295)), *sorted(HUMAN)[:5]])
    sources = [str(make_h5ad(f"{i}.h5ad", x=random_counts(150, 300, i), var=var)) for i in range(2)]
    made = []
    for workers in ("1", "2"):
        output = tmp_path / f"qc{workers}"
        argv = ["--source", ",".join(sources), "--output", str(output), "--workers", workers, "--cells-per-part", "40"]
        argv += ["--n-sd", "2", "--doublets", "--doublet-threshold", "0.5", "--plots", str(tmp_path / "plots")]
        assert run("quality_control", QualityConfig, quality_control.main, *argv) == 0
        printed = capsys.readouterr().out
        assert "5 mitochondrial genes, told by human Ensembl IDs in var index" in printed
        assert f"{tmp_path / 'plots'}: pictures of 2 data sets" in printed
        made.append({p.relative_to(output): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()})
    assert made[0] == made[1]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["01_0.h5ad.png", "02_1.h5ad.png"]


def test_only_the_largest_data_sets_are_drawn(
    ray_session: None, make_h5ad: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ["a"] * 3 + ["b/c d"] * 5 + ["e"] * 4
    path = make_h5ad(x=random_counts(12, 40), obs={"run": runs})
    monkeypatch.setattr(quality_control, "MAX_PLOTS", 2)
    config = QualityConfig(
        source=(str(path),), output=str(tmp_path / "qc"), dataset_column="run", plots=str(tmp_path / "plots")
    )
    assert "pictures of 2 data sets; 1 smaller ones not drawn" in quality_control.main(config)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["01_c_d.png", "02_e.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--malignant-values", "x"), "--malignant-values needs --malignant-column"),
        (("--doublet-threshold", "0.2"), "--doublet-threshold needs --doublets"),
        (("--gene-ids", "x"), "--gene-ids needs --vocabulary"),
        (("--n-sd", "0"), "--n-sd '0'"),
        (("--mito", "share"), "--mito 'share'"),
        (("--doublets", "--doublet-threshold", "2"), "--doublet-threshold '2'"),
    ],
)
def test_options_that_mean_nothing(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("--source", "none.h5ad", "--output", "none", *options)
    assert run("quality_control", QualityConfig, quality_control.main, *argv) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    config = QualityConfig(source=(str(tmp_path / "none.h5ad"),), output=str(tmp_path / "qc"))
    with pytest.raises(InputError, match=r"none\.h5ad: the file must exist"):
        quality_control.main(config)
    assert not (tmp_path / "qc").exists()
