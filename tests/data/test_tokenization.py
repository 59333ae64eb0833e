"""From files to a corpus on Ray: tokens, accounting, resumption, refusal; and the golden tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from cellray import storage
from cellray.data.corpora.corpus import Corpus, damaged_shards, read_rows
from cellray.data.parts import make_part
from cellray.data.report import report
from cellray.data.tokenization import TokenizeConfig, dry_run, tokenize_corpus
from cellray.errors import InputError
from cellray.schema import CorpusManifest
from cellray.vocabulary import GeneVocabulary, import_official
from tests.conftest import GENES, random_counts

pytestmark = pytest.mark.usefixtures("ray_session")
Make = Callable[..., Path]


@pytest.fixture
def vocabulary_file(vocabulary: GeneVocabulary, tmp_path: Path) -> str:
    path = str(tmp_path / "vocabulary.json")
    vocabulary.save(path)
    return path


def expected_rows(path: Path, vocabulary: GeneVocabulary, size: int) -> list[list[int]]:
    """Encode in the plainest way: anndata in memory, one cell after the other."""
    adata = anndata.read_h5ad(path)
    rows = []
    for cell in adata.X.toarray():
        keys = [
            (-count / vocabulary.medians[gene], vocabulary.genes[gene])
            for gene, count in zip(adata.var_names, cell, strict=True)
            if count > 0 and gene in vocabulary.medians
        ]
        rows.append([token for _, token in sorted(keys)][:size])
    return rows


def table_of(uri: str) -> list[dict[str, object]]:
    corpus = Corpus.open(uri)
    return [row for shard in corpus.shard_uris for row in read_rows(shard, 0, 1 << 30).to_pylist()]


def test_two_files_become_one_corpus(
    make_h5ad: Make, vocabulary: GeneVocabulary, vocabulary_file: str, tmp_path: Path
) -> None:
    paths = [make_h5ad("a.h5ad", cells=50, seed=1), make_h5ad("b.h5ad", cells=30, seed=2)]
    manifest = tokenize_corpus(
        TokenizeConfig(
            source=tuple(map(str, paths)),
            vocabulary=vocabulary_file,
            output=str(tmp_path / "corpus"),
            obs_columns=("kind",),
            cells_per_shard=20,
        )
    )
    rows = table_of(str(tmp_path / "corpus"))
    assert [row["input_ids"] for row in rows] == [r for p in paths for r in expected_rows(p, vocabulary, 16)]
    assert [row["source_row"] for row in rows] == [*range(50), *range(30)]
    assert [row["cell_id"] for row in rows][48:52] == ["cell48", "cell49", "cell0", "cell1"]
    assert [row["kind"] for row in rows][:3] == ["a", "b", "a"]
    assert [row["n_counts"] for row in rows[:50]] == anndata.read_h5ad(paths[0]).X.sum(1).A1.tolist()
    assert all(row["length"] == len(row["input_ids"]) for row in rows)  # type: ignore[arg-type]
    assert [(p.source, p.start, p.stop) for p in manifest.parts] == [
        (0, 0, 20),
        (0, 20, 40),
        (0, 40, 50),
        (1, 0, 20),
        (1, 20, 30),
    ]
    for part in manifest.parts:
        assert storage.sha256_file(str(tmp_path / "corpus" / part.path)) == part.sha256
    assert "30 known of 40 columns" in report(manifest)
    assert "50 kept of 50, none dropped" in report(manifest)


def test_every_cell_is_kept_or_counted(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    x = random_counts(10, 40).tolil()
    x[2, :30] = 0  # no gene of the vocabulary
    x[2, 35] = 4
    x[5] = 0
    path = make_h5ad(x=sparse.csr_matrix(x), obs={"filter_pass": [1, 1, 1, 0, 1, 1, 1, 1, 0, 1]})
    manifest = tokenize_corpus(
        TokenizeConfig(source=(str(path),), vocabulary=vocabulary_file, output=str(tmp_path / "corpus"))
    )
    reasons = {"filter_pass": 2, "quality control": 0, "no counts": 1, "no gene of the vocabulary": 1}
    assert manifest.sources[0].dropped == reasons
    assert [row["source_row"] for row in table_of(str(tmp_path / "corpus"))] == [0, 1, 4, 6, 7, 9]
    assert "2 dropped (filter_pass), 1 dropped (no counts), 1 dropped (no gene of the vocabulary)" in report(manifest)


def test_a_rerun_does_the_rest_and_a_third_run_writes_nothing(
    make_h5ad: Make, vocabulary_file: str, tmp_path: Path
) -> None:
    output = tmp_path / "corpus"
    config = TokenizeConfig(
        source=(str(make_h5ad(cells=50)),), vocabulary=vocabulary_file, output=str(output), cells_per_shard=10
    )
    first = tokenize_corpus(config)
    shards = {p: p.read_bytes() for p in sorted(output.glob("shards/*.parquet"))}
    (output / "manifest.json").unlink()
    lost = list(shards)[2]
    lost.unlink()
    kept = next(p for p in shards if p != lost)
    before = kept.stat().st_mtime_ns
    assert tokenize_corpus(config) == first
    assert {p: p.read_bytes() for p in sorted(output.glob("shards/*.parquet"))} == shards
    assert kept.stat().st_mtime_ns == before
    stamps = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    assert tokenize_corpus(config.model_copy(update={"workers": 1})) == first
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == stamps


def test_another_request_does_not_touch_a_corpus(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    path, output = make_h5ad(), tmp_path / "corpus"
    config = TokenizeConfig(source=(str(path),), vocabulary=vocabulary_file, output=str(output))
    tokenize_corpus(config)
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    with pytest.raises(
        InputError, match="corpus: the output must be empty or hold this very result; found another token corpus"
    ):
        tokenize_corpus(config.model_copy(update={"input_size": 8}))
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before


def test_bad_counts_far_into_a_file_leave_no_corpus(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    x = random_counts(2000, 40)
    x.data[x.indptr[1990]] = 0.5
    config = TokenizeConfig(source=(str(make_h5ad(x=x)),), vocabulary=vocabulary_file, output=str(tmp_path / "corpus"))
    with pytest.raises(
        InputError, match=r"cells\.h5ad: X must hold raw counts.*found 1 fractional of.*rows 1024-2000, as 0\.5"
    ):
        tokenize_corpus(config)
    with pytest.raises(InputError, match=r"a token corpus holds manifest\.json; found no such file"):
        Corpus.open(str(tmp_path / "corpus"))


def test_a_source_that_changes_meanwhile_is_refused(
    make_h5ad: Make, vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    from cellray.data.parts import Unit
    from cellray.data.tokenization import TokenizeOptions, TokenizeWorker

    options = TokenizeOptions(vocabulary, "X", None, None, 16, {})
    unit = Unit("k" * 64, str(make_h5ad()), "another version", 0, 0, 10)
    with pytest.raises(InputError, match="may not change while it is read"):
        make_part(unit, TokenizeWorker(options), str(tmp_path))


def test_unsorted_rows_and_repeated_genes_are_summed(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    x = np.array([[3, 1, 2]], np.float32)  # gene 0 stands twice: 3 + 2 = 5 over 0.5, gene 1: 1 over 1.0
    path = make_h5ad(x=sparse.csr_matrix(x), var=pd.DataFrame(index=[GENES[0], GENES[1], GENES[0] + ".3"]))
    manifest = tokenize_corpus(
        TokenizeConfig(source=(str(path),), vocabulary=vocabulary_file, output=str(tmp_path / "corpus"))
    )
    assert manifest.sources[0].genes.summed == 1
    assert table_of(str(tmp_path / "corpus"))[0]["input_ids"] == [2, 3]


def test_the_corpus_on_s3_is_the_one_on_disk(
    make_h5ad: Make, vocabulary_file: str, tmp_path: Path, bucket: str
) -> None:
    path = make_h5ad(cells=40)
    storage.write_bytes(f"{bucket}/in/cells.h5ad", path.read_bytes())
    on_disk = TokenizeConfig(
        source=(str(path),), vocabulary=vocabulary_file, output=str(tmp_path / "corpus"), cells_per_shard=15
    )
    on_s3 = on_disk.model_copy(update={"source": (f"{bucket}/in/cells.h5ad",), "output": f"{bucket}/corpus"})
    manifest, remote = tokenize_corpus(on_disk), tokenize_corpus(on_s3)
    assert [part.rows for part in remote.parts] == [15, 15, 10]
    assert table_of(on_s3.output) == table_of(on_disk.output)
    assert [part.sha256 for part in remote.parts] == [part.sha256 for part in manifest.parts]
    assert damaged_shards(Corpus.open(on_s3.output)) == []
    assert tokenize_corpus(on_s3) == remote  # done already
    with pytest.raises(InputError, match="must be empty or hold this very result"):
        tokenize_corpus(on_s3.model_copy(update={"input_size": 8}))


def test_one_worker_or_two_give_the_same_bytes(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    made = []
    for workers in (1, 2):
        output = tmp_path / str(workers)
        tokenize_corpus(
            TokenizeConfig(
                source=(str(make_h5ad(cells=60)),) if workers == 1 else (str(tmp_path / "cells.h5ad"),),
                vocabulary=vocabulary_file,
                output=str(output),
                cells_per_shard=7,
                workers=workers,
            )
        )
        made.append({p.relative_to(output): p.read_bytes() for p in output.rglob("*") if p.is_file()})
    assert made[0] == made[1]


def test_outputs_of_others_are_left_alone(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    config = TokenizeConfig(source=(str(make_h5ad()),), vocabulary=vocabulary_file, output=str(mine))
    with pytest.raises(InputError, match=r"mine: the output must be new or empty; found 'thesis\.txt'"):
        tokenize_corpus(config)
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]
    begun = config.model_copy(update={"output": str(tmp_path / "begun")})
    tokenize_corpus(begun)
    (tmp_path / "begun" / "manifest.json").unlink()
    with pytest.raises(InputError, match="found the beginnings of another"):
        tokenize_corpus(begun.model_copy(update={"input_size": 8}))


def test_a_finished_corpus_that_lost_a_shard_says_so(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    config = TokenizeConfig(source=(str(make_h5ad()),), vocabulary=vocabulary_file, output=str(tmp_path / "corpus"))
    manifest = tokenize_corpus(config)
    shard = tmp_path / "corpus" / manifest.parts[0].path
    assert damaged_shards(Corpus.open(config.output)) == []
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert damaged_shards(Corpus.open(config.output)) == [manifest.parts[0].path]
    shard.unlink()
    with pytest.raises(InputError, match="must hold all its parts"):
        tokenize_corpus(config)


def test_a_cell_without_counts_needs_no_total(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    x = random_counts(3, 40).tolil()
    x[1] = 0
    path = make_h5ad(x=sparse.csr_matrix(x), obs={"total": [9.0, 0.0, 7.0]})
    config = TokenizeConfig(
        source=(str(path),), vocabulary=vocabulary_file, output=str(tmp_path / "c"), n_counts_column="total"
    )
    assert tokenize_corpus(config).sources[0].dropped["no counts"] == 1
    assert [row["n_counts"] for row in table_of(config.output)] == [9.0, 7.0]


@pytest.fixture
def three_files(make_h5ad: Make) -> list[Path]:
    """Return a sound file, one that is none, and one with bad counts far behind its beginning."""
    late = random_counts(2000, 40)
    late.data[late.indptr[1990]] = 0.5
    paths = [make_h5ad("good.h5ad", cells=30), make_h5ad("none.h5ad", cells=3), make_h5ad("late.h5ad", x=late)]
    paths[1].write_bytes(b"nothing")
    return paths


def test_bad_files_are_all_named_or_all_left_out(three_files: list[Path], vocabulary_file: str, tmp_path: Path) -> None:
    good, none, late = map(str, three_files)
    config = TokenizeConfig(source=(none, late, good), vocabulary=vocabulary_file, output=str(tmp_path / "c"))
    with pytest.raises(InputError, match=r"none\.h5ad: the file must be a whole HDF5 file"):
        tokenize_corpus(config)
    skipping = config.model_copy(update={"on_bad_file": "skip", "cells_per_shard": 1000})
    manifest = tokenize_corpus(skipping)
    assert [source.uri for source in manifest.sources] == [good]
    assert [failed.uri for failed in manifest.failed] == [none, late]
    assert "X must hold raw counts" in manifest.failed[1].error
    assert {part.source for part in manifest.parts} == {0}
    assert manifest.rows == len(table_of(skipping.output)) == 30
    assert f"left out: {late}: X must hold raw counts" in report(manifest)
    with pytest.raises(InputError, match=r"none\.h5ad"):
        tokenize_corpus(skipping.model_copy(update={"source": (none,), "output": str(tmp_path / "d")}))


def test_a_dry_run_writes_nothing(three_files: list[Path], vocabulary_file: str, tmp_path: Path) -> None:
    good, none, _ = map(str, three_files)
    config = TokenizeConfig(
        source=(good, none),
        vocabulary=vocabulary_file,
        output=str(tmp_path / "c"),
        cells_per_shard=20,
        on_bad_file="skip",
        dry_run=True,
    )
    told = dry_run(config)
    assert "would write 2 shards of 30 cells from 1 files" in told
    assert f"would be left out: {none}: " in told
    assert not (tmp_path / "c").exists()


def test_the_manifest_is_readable_and_complete(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    path = make_h5ad()
    tokenize_corpus(TokenizeConfig(source=(str(path),), vocabulary=vocabulary_file, output=str(tmp_path / "corpus")))
    value = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    assert value["artefact"] == "token corpus"
    assert value["sources"][0]["size"] == path.stat().st_size
    assert {"python", "cellray", "anndata", "pyarrow"} <= set(value["software"])
    assert CorpusManifest.model_validate(value).to_json() == (tmp_path / "corpus" / "manifest.json").read_bytes()


@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_golden_tokens(shared: Path, tmp_path: Path, generation: str) -> None:
    vocabulary = import_official(shared / "data" / "geneformer_v1")
    size = 2048
    if generation == "v2":
        tokens = json.loads((shared / "golden" / "token_dictionary_v2.json").read_text())
        special = {name: token for name, token in tokens.items() if name.startswith("<")}
        genes = {name: token for name, token in tokens.items() if name not in special}
        vocabulary, size = GeneVocabulary(special, genes, vocabulary.medians, 4096), 1024
    vocabulary.save(str(tmp_path / "v.json"))
    tokenize_corpus(
        TokenizeConfig(
            source=(str(shared / "data" / "kang_ifnb.h5ad"),),
            vocabulary=str(tmp_path / "v.json"),
            output=str(tmp_path / "corpus"),
            obs_columns=("condition",),
            input_size=size,
            cells_per_shard=300,
        )
    )
    golden = pq.read_table(shared / "golden" / f"tokens_{generation}.parquet").to_pylist()
    rows = table_of(str(tmp_path / "corpus"))
    assert [[r[k] for k in ("cell_id", "condition", "input_ids")] for r in rows] == [
        [g[k] for k in ("cell_id", "condition", "input_ids")] for g in golden
    ]


def test_a_bad_file_that_comes_later_is_another_request(make_h5ad: Make, vocabulary_file: str, tmp_path: Path) -> None:
    good, bad = make_h5ad("good.h5ad"), tmp_path / "bad.h5ad"
    bad.write_bytes(b"no counts")
    config = TokenizeConfig(source=(str(good),), vocabulary=vocabulary_file, output=str(tmp_path / "corpus"))
    tokenize_corpus(config)
    with pytest.raises(InputError, match="must be empty or hold this very result"):
        tokenize_corpus(config.model_copy(update={"source": (str(good), str(bad)), "on_bad_file": "skip"}))
