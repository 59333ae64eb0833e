"""Splitting and drawing cells, against the plainest reading of the whole corpus."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cellray.data.corpora.concatenate import ConcatConfig, concat_corpora
from cellray.data.corpora.corpus import Corpus, damaged_shards
from cellray.data.corpora.splitting import SplitConfig, SubsampleConfig, folder_names, split_corpus, subsample_corpus
from cellray.data.report import report
from cellray.errors import InputError
from cellray.schema import RepeatedNames
from cellray.vocabulary import GeneVocabulary
from tests.data.corpora import rows_of, tokenized, units_here

__all__ = ["units_here"]  # a fixture of another file
Make = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("units_here")


def obs_of(cells: int, seed: int) -> dict[str, object]:
    """Types a to d of falling frequency, seven donors of different size, and some missing values."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["a", "b", "c", "d", None], cells, p=[0.45, 0.25, 0.15, 0.1, 0.05])
    return {"kind": kinds.astype(object), "donor": rng.choice(7, cells, p=np.arange(1, 8) / 28), "n": np.arange(cells)}


@pytest.fixture
def sources(make_h5ad: Make) -> list[Path]:
    return [
        make_h5ad("one.h5ad", cells=300, seed=1, obs=obs_of(300, 1) | {"filter_pass": [0] + [1] * 299}),
        make_h5ad("two.h5ad", cells=200, seed=2, obs=obs_of(200, 2)),
    ]


@pytest.fixture
def corpus(sources: list[Path], vocabulary: GeneVocabulary, tmp_path: Path) -> Corpus:
    return tokenized(sources, vocabulary, tmp_path / "corpus", ("kind", "donor"), 40)


def name(row: dict[str, object]) -> tuple[object, object]:
    return (row["source"], row["source_row"])


def split(corpus: Corpus, output: Path, **options: object) -> dict[str, list[dict[str, object]]]:
    """Split and return each new corpus's cells, having checked that its bytes and its account are right."""
    made = split_corpus(SplitConfig(corpus=corpus.uri, output=str(output), **options))  # type: ignore[arg-type]
    old = {name(row): row for row in rows_of(corpus)}
    found = {}
    for each in made:
        new = Corpus.open(each.uri)
        assert damaged_shards(new) == []
        found[each.uri.rsplit("/", 1)[1]] = rows = rows_of(new)
        assert all(old[name(row)] == row for row in rows)  # tokens, ids, counts and obs are as they were
        assert [name(row) for row in rows] == sorted(name(row) for row in rows)  # type: ignore[type-var]
        for i, source in enumerate(new.manifest.sources):
            assert source.kept == sum(row["source"] == i for row in rows)
            assert source.cells == source.kept + sum(source.dropped.values())
        tokens = sum(len(row["input_ids"]) for row in rows)  # type: ignore[arg-type]
        assert f"{len(rows):,} cells, {tokens:,} tokens" in report(new.manifest)
        assert new.manifest.parents[0].digest == corpus.manifest.digest
    return found


SHARES = ("train=0.7", "valid=0.2", "test=0.1")


def test_a_random_split_takes_every_cell_once(corpus: Corpus, tmp_path: Path) -> None:
    parts = split(corpus, tmp_path / "out", shares=SHARES)
    names = [name(row) for rows in parts.values() for row in rows]
    assert sorted(names) == sorted(map(name, rows_of(corpus)))  # type: ignore[type-var]
    assert len(names) == 499
    for rows, share in zip(parts.values(), (0.7, 0.2, 0.1), strict=True):
        assert len(rows) / 499 == pytest.approx(share, abs=0.06)
    assert Corpus.open(str(tmp_path / "out/test")).manifest.sources[0].dropped["filter_pass"] == 1
    other = split(corpus, tmp_path / "other", shares=SHARES, seed=1)
    assert [name(r) for r in other["test"]] != [name(r) for r in parts["test"]]
    some = split(corpus, tmp_path / "some", shares=("train=0.7",))
    assert some["train"] == parts["train"]  # the rest goes nowhere


def test_where_a_cell_goes_does_not_depend_on_shards_or_order(
    corpus: Corpus, sources: list[Path], vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    again = tokenized(sources[::-1], vocabulary, tmp_path / "again", ("kind", "donor"), 17)
    for options in (
        {"shares": SHARES},
        {"shares": SHARES, "stratify": "kind"},
        {"shares": SHARES, "group_by": "donor"},
    ):
        first = split(corpus, tmp_path / f"a{len(options)}{'group_by' in options}", **options)
        second = split(again, tmp_path / f"b{len(options)}{'group_by' in options}", cells_per_shard=30, **options)
        for part in first:
            turned = {(1 - row["source"], row["source_row"]) for row in second[part]}  # type: ignore[operator]
            assert {name(row) for row in first[part]} == turned


def test_every_class_gets_its_share(corpus: Corpus, tmp_path: Path) -> None:
    parts = split(corpus, tmp_path / "out", shares=SHARES, stratify="kind")
    sizes = Counter(row["kind"] for row in rows_of(corpus))
    assert set(sizes) == {"a", "b", "c", "d", None}
    for kind, size in sizes.items():
        ends = [0, *(round(end * size) for end in (0.7, 0.9, 1.0))]
        got = [sum(row["kind"] == kind for row in rows) for rows in parts.values()]
        assert got == list(np.diff(ends))


def test_groups_stay_together(corpus: Corpus, tmp_path: Path) -> None:
    parts = split(corpus, tmp_path / "out", shares=("train=0.6", "test=0.4"), group_by="donor")
    donors = [{row["donor"] for row in rows} for rows in parts.values()]
    assert donors[0] & donors[1] == set()
    assert donors[0] | donors[1] == set(range(7))
    assert len(parts["train"]) + len(parts["test"]) == 499
    largest = max(Counter(row["donor"] for row in rows_of(corpus)).values())
    assert abs(len(parts["train"]) - 0.6 * 499) <= largest


def test_a_corpus_for_each_value(corpus: Corpus, tmp_path: Path) -> None:
    parts = split(corpus, tmp_path / "out", by="kind")
    old = rows_of(corpus)
    assert parts == {kind: [row for row in old if row["kind"] == kind] for kind in "abcd"}
    missing = sum(row["kind"] is None for row in old)
    a = Corpus.open(str(tmp_path / "out/a")).manifest
    assert sum(s.dropped["not in this split"] for s in a.sources) == 499 - a.rows > missing > 0
    by_number = split(corpus, tmp_path / "numbers", by="donor")
    assert by_number["3"] == [row for row in old if row["donor"] == 3]


def test_shards_without_a_values_cells_are_not_read_for_it(
    make_h5ad: Make, vocabulary: GeneVocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six types, each in one of six shards: six units, each of which reads one shard."""
    obs = {"kind": np.repeat(list("abcdef"), 10)}
    made = tokenized([make_h5ad(cells=60, obs=obs)], vocabulary, tmp_path / "corpus", ("kind",), 10)
    read: list[str] = []
    whole = Corpus.read_chosen
    monkeypatch.setattr(Corpus, "read_chosen", lambda self, uri, chosen: read.append(uri) or whole(self, uri, chosen))
    split_corpus(SplitConfig(corpus=made.uri, output=str(tmp_path / "out"), by="kind"))
    assert read == made.shard_uris


def test_repeated_names_are_those_of_the_chosen_cells(corpus: Corpus, tmp_path: Path) -> None:
    """Both files call their cells cell0, cell1, ...; put together again, the halves of a split are the two files."""
    split(corpus, tmp_path / "out", shares=("x=0.5", "y=0.5"))
    halves = tuple(str(tmp_path / "out" / name) for name in "xy")
    for uri in halves:
        bearers = Counter(row["cell_id"] for row in rows_of(uri))
        found = Corpus.open(uri).manifest.repeated_names
        assert found == RepeatedNames(within=0, across=sum(n == 2 for n in bearers.values()))
    both = ConcatConfig(corpus=halves, output=str(tmp_path / "both"), allow_repeated=True)
    assert concat_corpora(both).manifest.repeated_names == corpus.manifest.repeated_names


def test_some_values(corpus: Corpus, tmp_path: Path) -> None:
    parts = split(corpus, tmp_path / "out", where="kind=b, d")
    assert parts == {"selected": [row for row in rows_of(corpus) if row["kind"] in ("b", "d")]}


def test_folder_names_are_plain_and_distinct() -> None:
    assert folder_names(["CD4+ T cell", "..", "x/y"]) == ["CD4+_T_cell", "empty", "x_y"]
    names = folder_names(["b cell", "b/cell", "B cell", "t"])
    assert names[3] == "t"
    assert len({name.lower() for name in names}) == 4


@pytest.mark.parametrize("wanted", [1, 30, 60, 10_000])
def test_so_many_of_each_class(corpus: Corpus, tmp_path: Path, wanted: int) -> None:
    config = SubsampleConfig(
        corpus=corpus.uri, output=str(tmp_path / "out"), class_column="kind", per_class=wanted, cells_per_shard=25
    )
    made = subsample_corpus(config)
    rows, old = rows_of(made.uri), rows_of(corpus)
    sizes = Counter(row["kind"] for row in old if row["kind"])
    assert Counter(row["kind"] for row in rows) == {kind: min(wanted, n) for kind, n in sizes.items()}
    by_name = {name(row): row for row in old}
    assert all(by_name[name(row)] == row for row in rows)
    assert len({name(row) for row in rows}) == len(rows)
    assert all(part.rows <= 25 or part.stop - part.start <= 40 for part in made.manifest.parts)
    assert subsample_corpus(config).manifest == made.manifest  # done already
    with pytest.raises(InputError, match="must be empty or hold this very result; found another token corpus"):
        subsample_corpus(config.model_copy(update={"per_class": 7}))


def test_counts_are_exact_where_sources_are_there_twice(corpus: Corpus, tmp_path: Path) -> None:
    both = str(tmp_path / "both")
    concat_corpora(ConcatConfig(corpus=(corpus.uri, corpus.uri), output=both, allow_repeated=True))
    made = subsample_corpus(
        SubsampleConfig(corpus=both, output=str(tmp_path / "out"), class_column="kind", per_class=25)
    )
    assert Counter(row["kind"] for row in rows_of(made.uri)) == dict.fromkeys("abcd", 25)


def test_a_split_of_a_split_of_a_concatenation(corpus: Corpus, tmp_path: Path) -> None:
    split(corpus, tmp_path / "first", shares=("x=0.5", "y=0.5"))
    both = str(tmp_path / "both")
    halves = (str(tmp_path / "first/x"), str(tmp_path / "first/y"))
    concat_corpora(ConcatConfig(corpus=halves, output=both, allow_repeated=True))
    parts = split(Corpus.open(both), tmp_path / "second", where="kind=a")
    found = {(row["cell_id"], row["n_counts"]) for row in parts["selected"]}
    assert found == {(row["cell_id"], row["n_counts"]) for row in rows_of(corpus) if row["kind"] == "a"}
    accounts = Corpus.open(str(tmp_path / "second/selected")).manifest.sources
    assert [s.cells for s in accounts] == [300, 200, 300, 200]


def test_what_cannot_be_split_says_why(corpus: Corpus, tmp_path: Path) -> None:
    base: dict[str, object] = {"corpus": corpus.uri, "output": str(tmp_path / "out")}
    for options, message in (
        ({}, "give one of --shares, --by and --where"),
        ({"shares": SHARES, "by": "kind"}, "give one of"),
        ({"by": "kind", "stratify": "kind"}, "go with --shares"),
        ({"shares": SHARES, "stratify": "kind", "group_by": "donor"}, "not both"),
        ({"where": "kind"}, "must be COLUMN=VALUE,VALUE"),
        ({"shares": ("a=0.8", "b=0.3")}, r"they add up to 1\.1, more than 1"),
        ({"shares": ("a=0.5", "a=0.5")}, "each name once"),
        ({"shares": ("../a=0.5",)}, "must be NAME=SHARE"),
        ({"shares": ("a=much",)}, "must be NAME=SHARE"),
    ):
        with pytest.raises(ValidationError, match=message):
            SplitConfig(**base | options)  # type: ignore[arg-type]
    for options, message in (
        ({"by": "tissue"}, "--by must name an obs column the corpus kept; found 'tissue'; kept: kind, donor"),
        (
            {"where": "kind=a,z"},
            "--where: must name values of obs column 'kind'; found no cell with 'z'; there are 'a'",
        ),
        ({"shares": ("a=0.99", "b=0.00001")}, "b: a corpus needs at least one cell; found none of"),
    ):
        with pytest.raises(InputError, match=message):
            split_corpus(SplitConfig(**base | options))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--class-column must name an obs column"):
        subsample_corpus(SubsampleConfig(**base, class_column="tissue", per_class=1))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
