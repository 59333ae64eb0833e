"""The command lines: exit status, one line on standard error, the last line; and the restored demo cells."""

import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

from cellray.config import JobConfig
from cellray.data.sources import demo_data
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary
from jobs import build_vocabulary, demo, embed_cells, tokenize_corpus
from jobs._run import run_job


def run(name: str, config_class: type[JobConfig], main: Callable[..., str], *argv: str) -> int:
    """Run a job in this process and return its exit status."""
    try:
        run_job(name, config_class, main, argv)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    "job",
    [
        "build_vocabulary",
        "quality_control",
        "tokenize_corpus",
        "concat_corpora",
        "split_corpus",
        "subsample_corpus",
        "export_dataset",
        "import_dataset",
        "inspect_corpus",
        "pretrain",
        "tune",
        "embed_cells",
        "attention",
        "predict",
        "perturb",
        "perturbation_stats",
        "score_integration",
        "gene_contexts",
        "finetune",
        "demo",
    ],
)
def test_help_of_every_job(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "--help"])
    warnings.simplefilter("ignore", RuntimeWarning)  # the module was imported by another test
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m jobs.{job}" in shown
    assert "--config FILE.toml" in shown


def test_a_vocabulary_from_counts_says_what_it_wrote(
    ray_session: None, make_h5ad: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "v.json")
    config, argv = build_vocabulary.BuildVocabularyConfig, ("--source", str(make_h5ad()), "--output", output)
    assert run("build_vocabulary", config, build_vocabulary.main, *argv) == 0
    made, medians, cells, columns, symbols = capsys.readouterr().out.splitlines()
    assert made.startswith(f"wrote {output}: 40 genes (40 with a median), ids: ensembl, input size 2,048")
    assert medians == (
        "medians: sketched, error at most 0.25%; files: 1, cells: 50, nonzero values: 768, "
        "genes seen in fewer than 10 cells: 1"
    )
    assert (cells, columns, symbols) == (
        "cells left out: none",
        "columns left out, over all files: none; retired ids replaced: 0; genes of no cell, which get no token: 0",
        "no symbols: --gene-table gives them",
    )
    assert len(GeneVocabulary.load(output).genes) == 40
    assert run("build_vocabulary", config, build_vocabulary.main, *argv, "--workers", "1") == 0
    again = capsys.readouterr().out
    told = made.replace(f"wrote {output}", f"{output} is complete already")
    assert again.splitlines() == [told, medians, cells, columns, symbols]
    assert run("build_vocabulary", config, build_vocabulary.main, *argv, "--exact") == 2
    assert "the output must be new, or hold this very result" in capsys.readouterr().err


def test_bad_input_ends_with_status_two_and_one_line(
    tmp_path: Path, vocabulary: GeneVocabulary, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary.save(str(tmp_path / "v.json"))
    (tmp_path / "cells.h5ad").write_bytes(b"no HDF5 at all")
    argv = [
        "--source",
        str(tmp_path / "cells.h5ad"),
        "--vocabulary",
        str(tmp_path / "v.json"),
        "--output",
        str(tmp_path / "c"),
    ]
    assert run("tokenize_corpus", tokenize_corpus.TokenizeConfig, tokenize_corpus.main, *argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "cells.h5ad: the file must be a whole HDF5 file" in printed.err
    assert run("tokenize_corpus", tokenize_corpus.TokenizeConfig, tokenize_corpus.main, *argv, "--colour", "red") == 2
    assert "--colour" in capsys.readouterr().err


def test_options_that_belong_together(capsys: pytest.CaptureFixture[str]) -> None:
    config = build_vocabulary.BuildVocabularyConfig
    assert run("build_vocabulary", config, build_vocabulary.main, "--output", "v") == 2
    assert "give either --source or --from-geneformer" in capsys.readouterr().err
    for more, message in (
        (("--from-geneformer", "d", "--exact"), "exact: no meaning with --from-geneformer"),
        (("--source", "a.h5ad", "--gene-types", "miRNA"), "--gene-types needs --gene-table"),
    ):
        assert run("build_vocabulary", config, build_vocabulary.main, "--output", "v", *more) == 2
        assert message in capsys.readouterr().err
    argv = ("--corpus", "c", "--model", "m", "--output", "o")
    for more, message in (
        (("--umap", "u.png"), "--umap and --label go together"),
        (("--pooling", "gene", "--h5ad", "x.h5ad"), "need one embedding a cell"),
        (("--actors", "3,2"), "--actors 3,2"),
    ):
        assert run("embed_cells", embed_cells.EmbedConfig, embed_cells.main, *argv, *more) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="--data: needs --label"):
        demo.main(demo.DemoConfig(data="x.h5ad"))


def test_unexpected_errors_say_how_to_learn_more(capsys: pytest.CaptureFixture[str]) -> None:
    class Options(JobConfig):
        """None."""

    def fail(config: Options) -> str:
        raise RuntimeError("disk on fire\nsecond line")

    assert run("x", Options, fail) == 1
    assert capsys.readouterr().err == "error: RuntimeError: disk on fire (set CELLRAY_TRACEBACK=1 for the traceback)\n"


def test_the_demo_cells_are_whole_counts(tmp_path: Path) -> None:
    demo_data.restore_pbmc(tmp_path / "pbmc.h5ad")
    adata = anndata.read_h5ad(tmp_path / "pbmc.h5ad")
    assert adata.shape == (700, 765)
    assert np.array_equal(adata.X.data, np.rint(adata.X.data))
    assert adata.X.data.min() == 1
    assert (adata.obs["n_counts"] >= adata.X.sum(1).A1).all()
