"""Datasets as Geneformer's users have them: written for `datasets` to load, read as `datasets` saved them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellray import storage
from cellray.data.corpora import hf_dataset
from cellray.data.corpora.corpus import Corpus, damaged_shards
from cellray.data.corpora.hf_dataset import export_dataset
from cellray.data.corpora.hf_import import ImportConfig, import_dataset
from cellray.data.corpora.hf_layout import SavedDataset
from cellray.data.report import report
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary
from tests.data.corpora import rows_of, tokenized, units_here

__all__ = ["units_here"]  # a fixture of another file
Make = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("units_here")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep `datasets` from drawing progress bars."""
    import datasets

    datasets.disable_progress_bars()


@pytest.fixture(params=["v1", "v2"])
def corpus(request: pytest.FixtureRequest, make_h5ad: Make, tmp_path: Path) -> Corpus:
    vocabulary = request.getfixturevalue("vocabulary" if request.param == "v1" else "vocabulary_v2")
    vocabulary.save(str(tmp_path / "v.json"))
    obs = {"kind": ["a", None] * 35, "age": np.arange(70), "score": np.linspace(0, 1, 70), "good": [True, False] * 35}
    paths = [make_h5ad("one.h5ad", cells=70, obs=obs), make_h5ad("two.h5ad", cells=70, seed=4, obs=obs)]
    return tokenized(paths, vocabulary, tmp_path / "corpus", list(obs), 30)


def config(tmp_path: Path, dataset: str | Path, **options: object) -> ImportConfig:
    values = {"dataset": str(dataset), "vocabulary": str(tmp_path / "v.json"), "output": str(tmp_path / "imported")}
    return ImportConfig(**values | options)  # type: ignore[arg-type]


def test_datasets_loads_what_is_written(corpus: Corpus, tmp_path: Path) -> None:
    from datasets import concatenate_datasets, load_from_disk

    export_dataset(corpus, str(tmp_path / "out.dataset"), cells_per_file=45)
    loaded = load_from_disk(str(tmp_path / "out.dataset"))
    expected = [
        {name: row[name] for name in ("input_ids", "length", "cell_id", "n_counts", "kind", "age", "score", "good")}
        for row in rows_of(corpus)
    ]
    assert loaded.to_list() == expected
    assert loaded.features["input_ids"].feature.dtype == loaded.features["length"].dtype == "int64"
    assert len(list((tmp_path / "out.dataset").glob("*.arrow"))) == 4
    assert json.loads((tmp_path / "out.dataset/dataset_info.json").read_text())["features"]["input_ids"] == {
        "feature": {"dtype": "int64", "_type": "Value"},
        "_type": "Sequence",
    }
    assert loaded.with_format("numpy")[45:47]["length"].tolist() == [row["length"] for row in expected[45:47]]
    assert len(concatenate_datasets([loaded, loaded])) == 280


def test_there_and_back_gives_the_same_cells(corpus: Corpus, tmp_path: Path) -> None:
    export_dataset(corpus, str(tmp_path / "out.dataset"), cells_per_file=45)
    made = import_dataset(config(tmp_path, tmp_path / "out.dataset", cells_per_shard=50))
    again = Corpus.open(str(tmp_path / "imported"))
    old = rows_of(corpus)
    assert rows_of(again) == [row | {"source": 0, "source_row": i} for i, row in enumerate(old)]
    assert made.left_out == ()
    assert [part.rows for part in made.manifest.parts] == [50, 50, 40]
    assert damaged_shards(again) == []
    assert "140 kept of 140, none dropped" in report(made.manifest)
    assert import_dataset(config(tmp_path, tmp_path / "out.dataset", cells_per_shard=50)) == made  # done already
    with pytest.raises(InputError, match="found another token corpus"):
        import_dataset(config(tmp_path, tmp_path / "out.dataset", cells_per_shard=20))


def test_an_export_is_complete_or_absent(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.dataset"
    with monkeypatch.context() as broken:
        broken.setattr("cellray.data.corpora.hf_dataset.state_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_dataset(corpus, str(out))
    assert not list(tmp_path.glob("*out.dataset*"))
    export_dataset(corpus, str(out))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    export_dataset(corpus, str(out))  # done already
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(InputError, match="the output must be new or empty"):
        export_dataset(corpus, str(out), cells_per_file=7)
    with pytest.raises(InputError, match="the output must be new or empty"):
        export_dataset(corpus, corpus.uri)


def test_a_dataset_on_s3(corpus: Corpus, tmp_path: Path, bucket: str) -> None:
    from datasets import load_from_disk

    name = f"out{len(corpus.vocabulary)}.dataset"  # `datasets` keeps what it once loaded of a URI
    uri = export_dataset(corpus, f"{bucket}/{name}", cells_per_file=45)
    loaded = load_from_disk(uri)
    assert loaded["input_ids"][:] == [row["input_ids"] for row in rows_of(corpus)]
    import_dataset(config(tmp_path, uri, cells_per_shard=50))
    assert [r["input_ids"] for r in rows_of(str(tmp_path / "imported"))] == loaded["input_ids"][:]


def test_a_killed_export_to_s3_goes_on(corpus: Corpus, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_from_disk

    name = f"{bucket}/killed{len(corpus.vocabulary)}.dataset"
    with monkeypatch.context() as broken:
        broken.setattr("cellray.data.corpora.hf_dataset.state_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_dataset(corpus, name, cells_per_file=45)
    assert not storage.exists(f"{name}/state.json")
    with pytest.raises(InputError, match="found the beginnings of another"):
        export_dataset(corpus, name, cells_per_file=7)
    written: list[str] = []
    real = storage.atomic_file
    monkeypatch.setattr(storage, "atomic_file", lambda uri, **k: written.append(uri) or real(uri, **k))
    export_dataset(corpus, name, cells_per_file=45)
    kept = [uri.removeprefix(f"{name}/") for uri in written]
    assert kept == ["vocabulary.json", "dataset_info.json", "state.json"]  # data files were there already
    loaded = load_from_disk(name)
    assert loaded["input_ids"][:] == [row["input_ids"] for row in rows_of(corpus)]
    storage.write_bytes(f"{bucket}/taken/thesis.txt", b"precious")
    with pytest.raises(InputError, match=r"the output must be new or empty; found 'thesis\.txt'"):
        export_dataset(corpus, f"{bucket}/taken")
    assert storage.read_bytes(f"{bucket}/taken/thesis.txt") == b"precious"


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_the_loser_of_two_exports_leaves_the_winners_data(
    corpus: Corpus, tmp_path: Path, where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second fails in the midst of its work, when the first is done."""
    root = str(tmp_path) if where == "disk" else request.getfixturevalue("bucket")
    uri = f"{root}/raced{len(corpus.vocabulary)}.dataset"
    real = hf_dataset.info_json

    def overtaken(*args: object) -> bytes:
        monkeypatch.setattr(hf_dataset, "info_json", real)
        export_dataset(corpus, uri)
        raise OSError("the disk is full")

    monkeypatch.setattr(hf_dataset, "info_json", overtaken)
    assert export_dataset(corpus, uri) == uri
    assert SavedDataset.open(uri).read(0, 140, ["length"])["length"].to_pylist() == [
        row["length"] for row in rows_of(corpus)
    ]


def save(tmp_path: Path, vocabulary: GeneVocabulary, **columns: object) -> Path:
    """Save a dataset with `datasets` itself."""
    from datasets import Dataset

    vocabulary.save(str(tmp_path / "v.json"))
    path = tmp_path / "saved.dataset"
    Dataset.from_dict(columns).save_to_disk(str(path))
    return path


def test_an_official_dataset_has_rows_and_labels_alone(tmp_path: Path, vocabulary: GeneVocabulary) -> None:
    from datasets import ClassLabel, Features, Sequence, Value

    rows = [[2, 3, 31], [5], [], [9, 8]]
    path = save(
        tmp_path, vocabulary, input_ids=rows, length=[3, 1, 0, 2], cell_type=["a", "b", "c", None], extra=[[1], [2]] * 2
    )
    made = import_dataset(config(tmp_path, path))
    assert made.left_out == ("extra",)
    found = rows_of(str(tmp_path / "imported"))
    assert [row["input_ids"] for row in found] == [[2, 3, 31], [5], [9, 8]]
    assert [row["cell_id"] for row in found] == ["0", "1", "3"]
    assert [row["source_row"] for row in found] == [0, 1, 3]
    assert [row["cell_type"] for row in found] == ["a", "b", None]
    assert np.isnan([row["n_counts"] for row in found]).all()
    assert made.manifest.sources[0].dropped == {"no gene of the vocabulary": 1}

    from datasets import Dataset

    features = Features(
        {"input_ids": Sequence(Value("int16")), "label": ClassLabel(names=["x", "y"]), "barcode": Value("int32")}
    )
    other = Dataset.from_dict({"input_ids": rows[:2], "label": [1, -1], "barcode": [11, 12]}, features=features)
    other.save_to_disk(str(tmp_path / "other"), num_shards=2)
    import_dataset(config(tmp_path, tmp_path / "other", output=str(tmp_path / "o"), cell_id_column="barcode"))
    got = [(row["input_ids"], row["label"], row["cell_id"]) for row in rows_of(str(tmp_path / "o"))]
    assert got == [([2, 3, 31], "y", "11"), ([5], None, "12")]


@pytest.mark.parametrize(
    ("rows", "lengths", "generation", "message"),
    [
        ([[2, 3], [32]], [2, 1], "v1", r"token ids must lie in 0\.\.31; found 32 in row 1\. Name the vocabulary"),
        ([[2, -3]], [2], "v1", "found -3 in row 0"),
        ([[2, 3], [4]], [2, 2], "v1", "length must be the number of tokens; found 2 in row 1"),
        ([list(range(2, 19))], [17], "v1", "a row holds at most 16 tokens; found 17 in row 0"),
        ([[2, 3], [3, 0]], [2, 2], "v1", "rows of this vocabulary hold genes alone; found 0 in row 1"),
        ([[2, 3, 2]], [3], "v1", "a gene stands once in a row; found 1 in row 0"),
        ([[2, 5, 3], [5, 6, 3]], [3, 3], "v2", "begin with <cls> and end with <eos>; found 5 in row 1"),
        ([[2, 5, 6]], [3], "v2", "begin with <cls> and end with <eos>; found 6 in row 0"),
        ([[2, 5, 1, 3]], [4], "v2", "between the ends rows hold genes alone; found 1 in row 0"),
        ([["a"], ["b"]], [1, 1], "v1", r"input_ids must be lists of token ids; found list<.*string>"),
        ([[2, None]], [2], "v1", "input_ids must be lists of token ids; found missing ones"),
        ([[], []], [0, 0], "v1", "a corpus needs at least one cell with a gene"),
    ],
)
def test_rows_that_cannot_be_cells(
    rows: list[list[object]],
    lengths: list[int],
    generation: str,
    message: str,
    tmp_path: Path,
    vocabulary: GeneVocabulary,
    vocabulary_v2: GeneVocabulary,
) -> None:
    from datasets import Dataset, Features, Sequence, Value

    (vocabulary if generation == "v1" else vocabulary_v2).save(str(tmp_path / "v.json"))
    kind = Value("string") if rows == [["a"], ["b"]] else Value("int64")
    features = Features({"input_ids": Sequence(kind), "length": Value("int64")})
    saved = Dataset.from_dict({"input_ids": rows, "length": lengths}, features=features)
    saved.save_to_disk(str(tmp_path / "saved.dataset"))
    with pytest.raises(InputError, match=message):
        import_dataset(config(tmp_path, tmp_path / "saved.dataset"))
    assert not (tmp_path / "imported/manifest.json").exists()


def test_what_is_no_dataset(tmp_path: Path, vocabulary: GeneVocabulary) -> None:
    from datasets import Dataset, DatasetDict

    path = save(tmp_path, vocabulary, input_ids=[[2], [3]], length=[1, 1], kind=["a", "b"], gene=["x", "y"])
    DatasetDict({"train": Dataset.from_dict({"input_ids": [[2]]})}).save_to_disk(str(tmp_path / "dict"))
    for options, message in (
        ({"dataset": str(tmp_path)}, r"must hold a dataset written by save_to_disk; found no state\.json"),
        ({"dataset": str(tmp_path / "dict")}, "one of several splits: 'train'. Name the folder of one split"),
        ({"obs_columns": ("tissue",)}, "every column asked for must exist; found no 'tissue'; it has 'gene'"),
        ({"obs_columns": ("gene",)}, "bears no name of the corpus; found 'gene'"),
        ({"n_counts_column": "kind"}, "column 'kind' must hold numbers; found string values"),
    ):
        with pytest.raises(InputError, match=message):
            import_dataset(config(tmp_path, **{"dataset": path} | options))  # type: ignore[arg-type]
    data = next(path.glob("*.arrow"))
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"arrow: the file must be a whole Arrow stream"):
        import_dataset(config(tmp_path, path))
    data.unlink()
    with pytest.raises(InputError, match=r"every data file must be there; found no '.*arrow'"):
        import_dataset(config(tmp_path, path))


def test_the_real_corpus_of_geneformer(shared: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq
    from datasets import Dataset

    from cellray.vocabulary import import_official

    cells = pq.read_table(shared / "data" / "genecorpus_500.parquet")
    import_official(shared / "data" / "geneformer_v1").save(str(tmp_path / "v.json"))
    Dataset(cells).save_to_disk(str(tmp_path / "real.dataset"))
    made = import_dataset(config(tmp_path, tmp_path / "real.dataset", cells_per_shard=200))
    assert made.manifest.rows == 500
    assert [row["input_ids"] for row in rows_of(str(tmp_path / "imported"))] == cells["input_ids"].to_pylist()
    assert storage.exists(str(tmp_path / "imported" / "vocabulary.json"))
