"""Command lines of the operations on whole corpora, one after the other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellray.vocabulary import GeneVocabulary
from jobs import concat_corpora, export_dataset, import_dataset, inspect_corpus, split_corpus, subsample_corpus
from tests.data.corpora import rows_of, tokenized
from tests.jobs.test_jobs import run


@pytest.mark.usefixtures("ray_session")
def test_operations_on_corpora_from_the_command_line(
    make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary.save(str(tmp_path / "v.json"))
    obs = {"kind": ["a", "b"] * 20, "donor": np.repeat(["x", "y", "z", "w"], 10)}
    for i in range(2):
        more = obs | ({"batch": [1] * 40} if i else {})
        path = make_h5ad(f"{i}.h5ad", cells=40, seed=i, obs=dict(more))
        tokenized([path], vocabulary, tmp_path / f"c{i}", list(more), 15)
    both, out = str(tmp_path / "both"), str(tmp_path / "out")

    def told(name: str, module: object, config: str, *argv: str) -> str:
        assert run(name, getattr(module, config), module.main, *argv) == 0, capsys.readouterr().err  # type: ignore[attr-defined]
        return capsys.readouterr().out

    corpora = f"{tmp_path}/c0,{tmp_path}/c1"
    shown = told("concat_corpora", concat_corpora, "ConcatConfig", "--corpus", corpora, "--output", both)
    assert "80 cells in 6 shards, which stay where they are, from 2 corpora; obs columns: kind, donor" in shown
    assert "obs columns left out, not in every corpus or not asked for: 'batch'" in shown
    shares = ("--shares", "train=0.75,test=0.25", "--group-by", "donor", "--seed", "1")
    shown = told("split_corpus", split_corpus, "SplitConfig", "--corpus", both, "--output", out, *shares)
    assert f"{out}/train: token corpus of 60 cells (75.0% of the sources' 80; train)" in shown
    where = ("--where", "donor=x,w")
    shown = told("split_corpus", split_corpus, "SplitConfig", "--corpus", both, "--output", f"{out}2", *where)
    assert {row["donor"] for row in rows_of(f"{out}2/selected")} == {"x", "w"}
    few = ("--class-column", "kind", "--per-class", "7", "--output", str(tmp_path / "few"))
    shown = told("subsample_corpus", subsample_corpus, "SubsampleConfig", "--corpus", both, *few)
    assert "7 cells of each 'kind', seed 0: 14 cells in" in shown
    dataset = str(tmp_path / "few.dataset")
    shown = told(
        "export_dataset", export_dataset, "ExportConfig", "--corpus", str(tmp_path / "few"), "--output", dataset
    )
    assert "columns: input_ids, length, cell_id, n_counts, kind, donor\n" in shown
    argv = ("--dataset", dataset, "--vocabulary", str(tmp_path / "v.json"), "--output", str(tmp_path / "back"))
    shown = told("import_dataset", import_dataset, "ImportConfig", *argv)
    assert "14 kept of 14, none dropped\nobs columns: kind (text), donor (text)" in shown
    assert [r["input_ids"] for r in rows_of(str(tmp_path / "back"))] == [
        r["input_ids"] for r in rows_of(str(tmp_path / "few"))
    ]
    shown = told("inspect_corpus", inspect_corpus, "InspectConfig", str(tmp_path / "back"), "--statistics")
    assert "kind: 2 distinct values, 0 missing" in shown
