"""Whatever is odd in the input and not refused is counted in the manifest and told."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from cellray import schema
from cellray.data.corpora.names import repeated_names
from cellray.data.report import report
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.errors import InputError
from cellray.schema import CorpusManifest, PartRecord, RepeatedNames
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES

Make = Callable[..., Path]


@pytest.fixture
def manifest(
    ray_session: None, make_h5ad: Make, vocabulary: GeneVocabulary, tmp_path: Path
) -> Callable[..., CorpusManifest]:
    """Tokenize files with the small vocabulary."""

    def tokenize(*files: Path, vocabulary: GeneVocabulary = vocabulary) -> CorpusManifest:
        vocabulary.save(str(tmp_path / "v.json"))
        return tokenize_corpus(
            TokenizeConfig(
                source=tuple(map(str, files)),
                vocabulary=str(tmp_path / "v.json"),
                output=str(tmp_path / "corpus"),
                obs_columns=("kind",),
                cells_per_shard=7,
            )
        )

    return tokenize


def test_how_genes_were_told(
    manifest: Callable[..., CorpusManifest], make_h5ad: Make, vocabulary: GeneVocabulary
) -> None:
    names = [f"{GENES[0]}.17", "ENSG00000099999", "TP53", *GENES[3:]]
    known = GeneVocabulary(
        vocabulary.special_tokens,
        vocabulary.genes,
        vocabulary.medians,
        vocabulary.input_size,
        symbols={"TP53": GENES[2]},
        retired_ids={"ENSG00000099999": GENES[1]},
    )
    found = manifest(make_h5ad(var=pd.DataFrame(index=names)), vocabulary=known)
    genes = found.sources[0].genes
    assert (genes.known, genes.unknown) == (30, 10)
    assert (genes.versioned, genes.retired, genes.by_symbol) == (1, 1, 1)
    assert "10 unknown; 1 with a version, 1 retired ids, 1 by symbol)" in report(found)


def test_missing_values_of_a_category(manifest: Callable[..., CorpusManifest], make_h5ad: Make) -> None:
    kind = pd.Categorical(["a", None, "b", "", "a"] * 4)  # an empty label is none
    found = manifest(make_h5ad(cells=20, obs={"kind": kind}))
    assert found.sources[0].missing == {"kind": 8}
    assert "obs column 'kind': 8 cells without a value" in report(found)


def test_duplicate_entries_are_added_and_counted(
    manifest: Callable[..., CorpusManifest], make_h5ad: Make, tmp_path: Path
) -> None:
    twice = sparse.csr_matrix(np.eye(3, 40, dtype=np.float32) + 1)
    path = make_h5ad(x=twice)
    with h5py.File(path, "r+") as file:
        indices = file["X/indices"][:]
        indices[[1, 2, 41]] = [0, 0, 0]  # the first cell names column 0 three times, the second one twice
        file["X/indices"][...] = indices
    found = manifest(path)
    assert found.sources[0].duplicate_entries == 3
    assert "3 values stand twice in a cell; they were added" in report(found)


def test_names_within_and_across_files(manifest: Callable[..., CorpusManifest], make_h5ad: Make) -> None:
    first, second = make_h5ad("a.h5ad", cells=10), make_h5ad("b.h5ad", cells=15)
    with h5py.File(second, "r+") as file:
        file["obs/_index"][3] = file["obs/_index"][14]
    found = manifest(first, second)
    assert found.repeated_names is not None
    assert (found.repeated_names.within, found.repeated_names.across) == (1, 9)
    assert found.rows == 25
    assert "1 cells bear the name of another of their file" in report(found)
    assert "9 cell names stand in several files" in report(found)


def test_too_many_names_are_not_compared() -> None:
    part = PartRecord(path="none", rows=50_000_001, sha256="", source=0, start=0, stop=50_000_001)
    assert repeated_names("nowhere", [part]) is None


def test_columns_that_only_some_files_have(
    ray_session: None, make_h5ad: Make, vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    first = make_h5ad("a.h5ad", cells=4, obs={"donor": ["d1", "d2", "d1", "d2"]})
    second = make_h5ad("b.h5ad", cells=3, obs={"age": [1, 2, 3]})
    vocabulary.save(str(tmp_path / "v.json"))
    config = TokenizeConfig(
        source=(str(first), str(second)),
        vocabulary=str(tmp_path / "v.json"),
        output=str(tmp_path / "corpus"),
        obs_columns=("donor", "age"),
    )
    rule = r"2 files: every file must be sound:\n  .*a\.h5ad: every obs column .* no 'age'"
    with pytest.raises(InputError, match=rule):
        tokenize_corpus(config)
    found = tokenize_corpus(config.model_copy(update={"missing_obs": "null"}))
    assert [source.missing for source in found.sources] == [{"age": 4}, {"donor": 3}]
    with pytest.raises(InputError, match="some file must have each obs column asked for; found none with 'sex'"):
        tokenize_corpus(config.model_copy(update={"missing_obs": "null", "obs_columns": ("sex",)}))


def brute_force(rows: list[tuple[str, int]]) -> tuple[int, int]:
    """Count cells that bear the name of an earlier one of their source, and names of several sources."""
    sources: dict[str, set[int]] = {}
    for name, source in rows:
        sources.setdefault(name, set()).add(source)
    return len(rows) - len(set(rows)), sum(len(found) > 1 for found in sources.values())


@pytest.mark.parametrize("at_once", [1000, 50, 7])
def test_names_are_counted_alike_in_any_number_of_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Shards in no order of their sources, of which the last is the first again."""
    rng = np.random.default_rng(0)
    parts, rows = [], []
    files = [SimpleNamespace(uri=uri, version="1") for uri in ("a", "b", "c", "a")]
    for i, source in enumerate([2, 0, 1, 3, 0, 3]):
        names = [f"cell{n}" for n in rng.integers(0, 90, 40)]
        pq.write_table(pa.table({schema.CELL_ID: names}), tmp_path / f"{i}.parquet")
        parts.append(PartRecord(path=f"{i}.parquet", rows=40, sha256="", source=source, start=0, stop=40))
        rows.extend((name, source % 3) for name in names)
    monkeypatch.setattr("cellray.data.corpora.names.CELLS_AT_ONCE", at_once)
    found = repeated_names(str(tmp_path), parts, files)
    assert found is not None
    assert (found.within, found.across) == brute_force(rows)
    assert found.within > 20
    assert found.across > 20
    assert repeated_names(str(tmp_path), []) == RepeatedNames(within=0, across=0)
