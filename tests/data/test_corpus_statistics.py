"""Statistics against a count over all cells in memory."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellray.data.corpora import statistics as module
from cellray.data.corpora.corpus import Corpus
from cellray.data.corpora.statistics import corpus_statistics, describe
from cellray.vocabulary import GeneVocabulary
from jobs.inspect_corpus import InspectConfig, main
from tests.data.corpora import rows_of, tokenized


@pytest.fixture
def corpus(make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path) -> Corpus:
    obs = {"kind": ["a", "b", None, "a"] * 15, "age": np.arange(60) % 7}
    paths = [make_h5ad("one.h5ad", cells=60, obs=obs), make_h5ad("two.h5ad", cells=60, seed=3, obs=obs)]
    return tokenized(paths, vocabulary, tmp_path / "corpus", ("kind", "age"), 25)


def test_counts_are_those_of_all_cells(corpus: Corpus) -> None:
    rows, found = rows_of(corpus), corpus_statistics(corpus)
    lengths = np.array([row["length"] for row in rows])
    assert (found.cells, found.tokens) == (120, lengths.sum())
    assert np.array_equal(found.length_counts, np.bincount(lengths, minlength=17))
    for q in (0.0, 0.1, 0.5, 0.77, 1.0):
        assert found.length_quantile(q) == np.quantile(lengths, q, method="inverted_cdf")
    assert sum(n for _, _, n in found.length_histogram(4)) == 120
    for low, high, n in found.length_histogram(4):
        assert n == ((lengths >= low) & (lengths <= high)).sum()
    assert found.truncated == sum(part.counts["truncated"] for part in corpus.manifest.parts) > 0
    assert found.columns["kind"].counts == Counter(row["kind"] for row in rows if row["kind"])
    assert found.columns["kind"].missing == 30
    assert found.columns["age"].top(2) == [("0", 18), ("1", 18)]
    assert [n for _, n in found.sources] == [60, 60]


def test_people_can_read_them(corpus: Corpus) -> None:
    told = describe(corpus_statistics(corpus), top=1)
    assert "kind: 2 distinct values, 30 missing" in told
    assert "            60  50.0% a" in told
    assert "            30  25.0% (1 other values)" in told
    assert max(line.count("#") for line in told.splitlines()) >= 20


def test_too_many_labels_are_not_kept(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_LABELS", 5)
    found = corpus_statistics(corpus)
    assert found.columns["age"].uncounted
    assert not found.columns["age"].counts
    assert "age: more than 5 distinct values, 0 missing" in describe(found)


def test_the_job_tells_and_draws(corpus: Corpus, tmp_path: Path) -> None:
    picture = tmp_path / "lengths.png"
    told = main(InspectConfig(corpus=corpus.uri, statistics=True, plot=str(picture), verify=True))
    assert "length quantiles" in told
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "length quantiles" not in main(InspectConfig(corpus=corpus.uri))
    assert "\nmade by tokenization\n" in told
