"""What quality control lets pass is what tokenization and medians take, as if obs said so."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from cellray import schema
from cellray.data.corpora.corpus import Corpus
from cellray.data.medians.build import MedianConfig, build_vocabulary
from cellray.data.quality.plan import QualityConfig
from cellray.data.quality.run import quality_control
from cellray.data.tokenization import TokenizeConfig, dry_run, tokenize_corpus
from cellray.errors import InputError
from cellray.schema import CorpusManifest
from cellray.vocabulary import GeneVocabulary

pytestmark = pytest.mark.usefixtures("ray_session")
Make = Callable[..., Path]


def tokens(uri: str) -> list[tuple[int, list[int]]]:
    """Return row and token ids of every cell, in the corpus's order."""
    corpus = Corpus.open(uri)
    rows = (corpus.read(corpus.part_uri(part), 0, part.rows) for part in corpus.manifest.parts)
    return [(row[schema.SOURCE_ROW], row[schema.INPUT_IDS]) for table in rows for row in table.to_pylist()]


@pytest.fixture
def files(make_h5ad: Make, tmp_path: Path) -> tuple[Path, Path]:
    """Return cells of which some are far too large, and the same with obs column filter_pass as verdicts say."""
    path = make_h5ad(cells=60, seed=3)
    adata = anndata.read_h5ad(path)
    adata.X[[4, 31]] *= 40
    adata.write_h5ad(path)
    marked = adata.copy()
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    verdict = np.abs(totals - totals.mean()) <= 3 * totals.std()
    assert sorted(np.flatnonzero(~verdict)) == [4, 31]
    marked.obs["filter_pass"] = verdict.astype(int)
    marked.write_h5ad(tmp_path / "marked.h5ad")
    return path, tmp_path / "marked.h5ad"


def tokenize(path: Path, vocabulary: GeneVocabulary, tmp_path: Path, name: str, **options: object) -> CorpusManifest:
    vocabulary.save(str(tmp_path / "v.json"))
    config = TokenizeConfig(
        source=(str(path),),
        vocabulary=str(tmp_path / "v.json"),
        output=str(tmp_path / name),
        cells_per_shard=25,
        **options,  # type: ignore[arg-type]
    )
    return tokenize_corpus(config)


def test_verdicts_stand_for_filter_pass(files: tuple[Path, Path], vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    path, marked = files
    quality = str(tmp_path / "qc")
    quality_control(QualityConfig(source=(str(path),), output=quality))
    judged = tokenize(path, vocabulary, tmp_path, "judged", quality=quality)
    tokenize(marked, vocabulary, tmp_path, "marked")
    assert tokens(str(tmp_path / "judged")) == tokens(str(tmp_path / "marked"))
    assert judged.sources[0].dropped[schema.QUALITY_CONTROL] == 2
    measured = build_vocabulary(MedianConfig(source=(str(path),), quality=quality, exact=True))
    assert measured == build_vocabulary(MedianConfig(source=(str(marked),), exact=True))
    assert measured.origin["cells_left_out"] == {schema.QUALITY_CONTROL: 2}


def test_quality_control_within_tokenization(
    files: tuple[Path, Path], vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    path, _ = files
    quality = tmp_path / "qc"
    vocabulary.save(str(tmp_path / "v.json"))
    looking = TokenizeConfig(
        source=(str(path),), vocabulary=str(tmp_path / "v.json"), output="unused", quality=str(quality), dry_run=True
    )
    assert f"quality control would be made first, in {quality}" in dry_run(looking)
    assert not quality.exists()
    manifest = tokenize(path, vocabulary, tmp_path, "corpus", quality=str(quality))
    assert "quality control lets 58 of 60 cells pass" in dry_run(looking)
    verdicts = pd.read_parquet(quality / "shards")
    assert manifest.rows == verdicts.filter_pass.sum()
    assert manifest.sources[0].dropped[schema.QUALITY_CONTROL] == (~verdicts.filter_pass).sum()


def test_a_file_that_quality_control_did_not_see(
    files: tuple[Path, Path], vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    path, marked = files
    quality = str(tmp_path / "qc")
    quality_control(QualityConfig(source=(str(path),), output=quality))
    with pytest.raises(InputError, match=r"marked\.h5ad: it must be a source of the quality control"):
        tokenize(marked, vocabulary, tmp_path, "corpus", quality=quality)
    with pytest.raises(InputError, match=r"marked\.h5ad: it must be a source of the quality control"):
        build_vocabulary(MedianConfig(source=(str(marked),), quality=quality))
