"""The files of a Hugging Face dataset as `save_to_disk` writes them: Arrow streams, `dataset_info.json`, `state.json`.

Read and written with Arrow alone, so there is no cache, no network and no second copy on the way. Knows nothing of
tokens. The layout: https://huggingface.co/docs/datasets, `Dataset.save_to_disk`.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from cellray import storage
from cellray.errors import InputError, listing

STATE, INFO, DICT = "state.json", "dataset_info.json", "dataset_dict.json"
_AT_ONCE = 8
_DTYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool"}


@dataclass(frozen=True)
class DataFile:
    """One Arrow stream of a dataset and the number of its first row in the whole."""

    uri: str
    first: int
    rows: int


@dataclass(frozen=True)
class SavedDataset:
    """A dataset on disk or in object storage, opened for reading.

    Attributes
    ----------
    uri
        Its directory.
    files
        Its data, in order.
    columns
        Names and Arrow types.
    labels
        Names of the classes of each column of type ClassLabel.
    """

    uri: str
    files: tuple[DataFile, ...]
    columns: pa.Schema
    labels: dict[str, tuple[str, ...]]

    @classmethod
    def open(cls, uri: str) -> "SavedDataset":
        """Open the dataset in a directory; its rows are counted, without the values being read where disks allow.

        Raises
        ------
        InputError
            The directory holds none, or several, or one that is not read here.
        """
        uri = storage.absolute(uri)
        rule = "the directory must hold a dataset written by save_to_disk"
        if storage.exists(storage.join(uri, DICT)):
            splits = storage.read_json(storage.join(uri, DICT)).get("splits", [])
            raise InputError(uri, rule, f"one of several splits: {listing(splits)}", "Name the folder of one split.")
        if not storage.exists(storage.join(uri, STATE)):
            raise InputError(uri, rule, f"no {STATE}", "Check the path.")
        state, info = storage.read_json(storage.join(uri, STATE)), storage.join(uri, INFO)
        if state.get("_indices_data_files"):
            raise InputError(uri, rule, "rows chosen by an index file", "Save it again after flatten_indices().")
        names = [storage.join(uri, item["filename"]) for item in state["_data_files"]]
        missing = [name for name in names if not storage.exists(name)]
        if missing or not names:
            raise InputError(uri, "every data file must be there", f"no {listing(missing, 3)}", "Restore it.")
        features = storage.read_json(info).get("features") or {} if storage.exists(info) else {}
        labels = {name: tuple(f["names"]) for name, f in features.items() if _type(f) == "ClassLabel"}
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            counts = list(threads.map(_count_rows, names))
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        files = tuple(DataFile(*item) for item in zip(names, firsts, counts, strict=True))
        with _stream(names[0]) as reader:
            return cls(uri, files, reader.schema, labels)

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(file.rows for file in self.files)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Read rows `start .. stop` of some columns; class labels come as their names."""
        pieces = [
            piece.select(list(columns))
            for file in self.files
            if file.first < stop and start < file.first + file.rows
            for piece in _rows(file.uri, max(start - file.first, 0), min(stop - file.first, file.rows))
        ]
        table = pa.concat_tables(pieces)
        for name in set(columns) & set(self.labels):
            names = pa.array(self.labels[name], pa.string())
            index = table[name].cast(pa.int64()).to_pandas().where(lambda i: i >= 0)  # -1: no label
            text = names.take(pa.array(index, pa.int64(), from_pandas=True))
            table = table.set_column(table.schema.get_field_index(name), name, text)
        return table


def _type(feature: Any) -> str:  # noqa: ANN401  # JSON
    return str(feature.get("_type")) if isinstance(feature, dict) else ""


@contextmanager
def _stream(uri: str) -> Iterator[pa.RecordBatchStreamReader]:
    """Open an Arrow stream: mapped from a disk, read in order from anywhere else."""
    fs, path = storage.filesystem(uri)
    with pa.memory_map(path) if storage.is_local(uri) else fs.open(path, "rb") as file:
        try:
            yield pa.ipc.open_stream(file)
        except pa.ArrowInvalid as error:
            fix = "Restore it, or save the dataset again."
            raise InputError(uri, "the file must be a whole Arrow stream", str(error), fix) from None


def _count_rows(uri: str) -> int:
    with _stream(uri) as reader:
        return sum(batch.num_rows for batch in reader)


@lru_cache(maxsize=16)
def _mapped(uri: str, version: str) -> pa.Table:  # another version is another table
    """Return a file on a disk as a table whose values stay there; kept for the next rows."""
    with _stream(uri) as reader:
        return reader.read_all()


def _rows(uri: str, start: int, stop: int) -> Iterator[pa.Table]:
    """Yield rows `start .. stop` of a file, piece by piece."""
    if storage.is_local(uri):
        yield _mapped(uri, storage.stamp(uri).version).slice(start, stop - start)
        return
    with _stream(uri) as reader:
        first = 0
        for batch in reader:
            if first < stop and start < first + batch.num_rows:
                wanted = batch.slice(max(start - first, 0), stop - max(start, first))
                yield pa.Table.from_batches([wanted])
            first += batch.num_rows
            if first >= stop:
                return


def with_features(columns: pa.Schema) -> pa.Schema:
    """Return a schema with the metadata by which `datasets` knows its own."""
    info = {"info": {"features": features_of(columns)}}
    return columns.with_metadata({"huggingface": json.dumps(info)})


def features_of(columns: pa.Schema) -> dict[str, Any]:
    """Return the features of a schema; lists are called `Sequence`, which old and new versions of `datasets` read."""

    def feature(kind: pa.DataType) -> dict[str, Any]:
        if pa.types.is_list(kind):
            return {"feature": feature(kind.value_type), "_type": "Sequence"}
        return {"dtype": _DTYPES[kind], "_type": "Value"}

    return {field.name: feature(field.type) for field in columns}


def info_json(columns: pa.Schema, description: str) -> bytes:
    """Return the content of `dataset_info.json`."""
    value = {
        "citation": "",
        "description": description,
        "features": features_of(columns),
        "homepage": "",
        "license": "",
    }
    return json.dumps(value, indent=2).encode()


def state_json(files: Sequence[str], fingerprint: str) -> bytes:
    """Return the content of `state.json`."""
    value: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    return json.dumps(value, indent=2).encode()
