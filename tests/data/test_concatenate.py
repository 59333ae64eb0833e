"""Corpora as one: the same cells in the same order, whether their shards are referred to or copied."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellray import storage
from cellray.data.corpora.concatenate import ConcatConfig, concat_corpora
from cellray.data.corpora.corpus import Corpus, damaged_shards
from cellray.data.report import report
from cellray.errors import InputError
from cellray.schema import RepeatedNames
from cellray.vocabulary import GeneVocabulary
from tests.data.corpora import rows_of, tokenized

Make = Callable[..., Path]


@pytest.fixture
def three(make_h5ad: Make, vocabulary: GeneVocabulary, tmp_path: Path) -> list[Corpus]:
    """Corpora whose obs columns differ in kind, order and number."""
    rng = np.random.default_rng(0)
    columns = [
        {"age": rng.integers(0, 90, 30), "kind": rng.choice(["a", "b"], 30), "batch": np.arange(30)},
        {"kind": rng.choice(["b", "c"], 25), "age": rng.random(25), "batch": rng.choice([True, False], 25)},
        {"age": np.arange(15), "kind": rng.choice([1, 2], 15), "site": ["x"] * 15},
    ]
    paths = [make_h5ad(f"{i}.h5ad", cells=len(obs["age"]), seed=i, obs=dict(obs)) for i, obs in enumerate(columns)]
    return [
        tokenized([path], vocabulary, tmp_path / f"c{i}", list(obs), 10)
        for i, (path, obs) in enumerate(zip(paths, columns, strict=True))
    ]


def expected(corpora: list[Corpus], kinds: dict[str, type]) -> list[dict[str, object]]:
    """Read all corpora and level their obs columns in Python."""
    rows, first = [], 0
    for corpus in corpora:
        for row in rows_of(corpus):
            fixed = {k: row[k] for k in ("input_ids", "length", "cell_id", "n_counts", "source_row")}
            levelled = {name: kind(row[name]) for name, kind in kinds.items()}  # type: ignore[call-arg]
            rows.append(fixed | levelled | {"source": first + int(row["source"])})  # type: ignore[call-overload]
        first += len(corpus.manifest.sources)
    return rows


def concat(corpora: list[Corpus], output: Path, **options: object) -> Corpus:
    uris = tuple(corpus.uri for corpus in corpora)
    concat_corpora(ConcatConfig(corpus=uris, output=str(output), **options))  # type: ignore[arg-type]
    return Corpus.open(str(output))


@pytest.mark.parametrize("copied", [False, True])
def test_cells_follow_one_another(three: list[Corpus], tmp_path: Path, copied: bool) -> None:
    made = concat(three, tmp_path / "all", copy_shards=copied)
    assert made.manifest.obs_kinds == {"age": "real", "kind": "text"}
    assert rows_of(made) == expected(three, {"age": float, "kind": str})
    assert made.columns == ["input_ids", "length", "cell_id", "n_counts", "source_row", "age", "kind"]
    assert [source.uri for source in made.manifest.sources] == [str(tmp_path / f"{i}.h5ad") for i in range(3)]
    assert damaged_shards(made) == []
    assert bool(list((tmp_path / "all").rglob("*.parquet"))) == copied
    assert [part.sha256 for part in made.manifest.parts] == [p.sha256 for c in three for p in c.manifest.parts]
    shutil.rmtree(three[1].uri)
    assert len(damaged_shards(made)) == (0 if copied else 3)


@pytest.mark.parametrize("copied", [False, True])
def test_repeated_names_are_counted(three: list[Corpus], tmp_path: Path, copied: bool) -> None:
    """Cells are called cell0, cell1, ... in files of 30, 25 and 15 cells; a file that is there twice is one file."""
    bearers = Counter(row["cell_id"] for corpus in three for row in rows_of(corpus))
    found = concat(three, tmp_path / "all", copy_shards=copied).manifest.repeated_names
    assert found == RepeatedNames(within=0, across=sum(n > 1 for n in bearers.values()))
    twice = concat([three[0], three[0]], tmp_path / "twice", allow_repeated=True, copy_shards=copied)
    assert twice.manifest.repeated_names == RepeatedNames(within=30, across=0)
    assert "30 cells bear the name of another of their file" in report(twice.manifest)


def test_what_was_left_out_is_told(three: list[Corpus], tmp_path: Path) -> None:
    config = ConcatConfig(corpus=(three[0].uri, three[1].uri), output=str(tmp_path / "two"))
    made = concat_corpora(config)
    assert made.manifest.obs_kinds == {"age": "real", "kind": "text", "batch": "text"}
    assert made.left_out == ()
    assert {row["batch"] for row in rows_of(config.output)} >= {"0", "29", "true", "false"}
    chosen = config.model_copy(update={"output": str(tmp_path / "chosen"), "obs_columns": ("kind",)})
    assert concat_corpora(chosen).left_out == ("age", "batch")
    assert concat_corpora(chosen) == concat_corpora(chosen)  # done already
    with pytest.raises(InputError, match="found another token corpus"):
        concat_corpora(chosen.model_copy(update={"obs_columns": ("age",)}))


def test_a_concatenation_of_concatenations(three: list[Corpus], tmp_path: Path) -> None:
    first = concat(three[:2], tmp_path / "first")
    made = concat([first, three[2]], tmp_path / "second")
    assert rows_of(made) == expected(three, {"age": float, "kind": str})
    shutil.rmtree(first.uri)  # a manifest alone: the shards were never there
    assert damaged_shards(made) == []
    assert len({unit.key for unit in made.plan_units(4)}) == len(made.plan_units(4))


def test_units_tell_equal_shards_and_other_columns_apart(three: list[Corpus], tmp_path: Path) -> None:
    doubled = concat([three[0], three[0]], tmp_path / "doubled", allow_repeated=True)
    keys = [unit.key for unit in doubled.plan_units(10)]
    assert len(set(keys)) == len(keys) == 6
    assert keys[:3] == [unit.key for unit in three[0].plan_units(10)]
    fewer = concat([three[0], three[0]], tmp_path / "fewer", allow_repeated=True, obs_columns=("kind",))
    assert not {unit.key for unit in fewer.plan_units(10)} & set(keys)


def test_a_concatenation_on_s3_refers_to_disk_and_back(three: list[Corpus], tmp_path: Path, bucket: str) -> None:
    config = ConcatConfig(corpus=(three[0].uri, three[1].uri), output=f"{bucket}/copied", copy_shards=True)
    concat_corpora(config)
    there = Corpus.open(config.output)
    assert rows_of(there) == expected(three[:2], {"age": float, "kind": str, "batch": lambda v: str(v).lower()})  # type: ignore[dict-item]
    mixed = concat([there, three[2]], tmp_path / "mixed")
    assert mixed.shard_uris[0].startswith("s3://cells/copied/shards/")
    assert rows_of(mixed) == expected(three, {"age": float, "kind": str})
    assert storage.exists(f"{bucket}/copied/manifest.json")


def test_what_does_not_fit_together(
    three: list[Corpus], make_h5ad: Make, vocabulary: GeneVocabulary, vocabulary_v2: GeneVocabulary, tmp_path: Path
) -> None:
    source = make_h5ad("more.h5ad", cells=12, seed=9)
    other = tokenized([source], vocabulary_v2, tmp_path / "other")
    shorter = GeneVocabulary(vocabulary.special_tokens, vocabulary.genes, vocabulary.medians, 8)
    short = tokenized([source], shorter, tmp_path / "short")
    uris = [corpus.uri for corpus in three]
    base = ConcatConfig(corpus=(uris[0], uris[1]), output=str(tmp_path / "out"))
    for change, message in (
        ({"corpus": (uris[0],)}, "--corpus: names two corpora or more; found 1"),
        ({"corpus": (uris[0], other.uri)}, f"corpus {other.uri}: its vocabulary must be that of corpus {uris[0]}"),
        (
            {"corpus": (uris[0], short.uri)},
            f"rows must be encoded as those of {uris[0]}; found input size 8 against 16",
        ),
        ({"corpus": (*uris, uris[1])}, r"1\.h5ad: a source may be in one of the corpora only.*c1 and .*c1\. Leave one"),
        ({"obs_columns": ("site",)}, "--obs-columns must name an obs column the corpus kept; found 'site'"),
    ):
        with pytest.raises(InputError, match=message):
            concat_corpora(base.model_copy(update=change))
    shard = Path(three[1].shard_uris[1])
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + b"?")
    with pytest.raises(InputError, match=f"{shard.name}: a shard must be the one in its manifest; found other bytes"):
        concat_corpora(base.model_copy(update={"copy_shards": True, "output": str(tmp_path / "copy")}))
    shard.unlink()
    with pytest.raises(InputError, match=f"every shard must be there; found '{shard}' missing"):
        concat_corpora(base)
    shard.write_bytes(good)
    concat_corpora(base)
    shard.unlink()
    with pytest.raises(InputError, match="a finished result must hold all its parts"):
        concat_corpora(base)
