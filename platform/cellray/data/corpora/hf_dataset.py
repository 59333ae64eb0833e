"""A token corpus as an official Geneformer `.dataset`: a directory that `datasets.load_from_disk` reads.

Columns: `input_ids` and `length` as the official tokenizer writes them (64-bit numbers), the obs columns, and the
cells' names and total counts. Written as it is read, in constant memory; complete or absent.
"""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from pydantic import Field

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus
from cellray.data.corpora.hf_layout import INFO, STATE, info_json, state_json, with_features
from cellray.data.publishing import claim
from cellray.errors import InputError, listing

logger = logging.getLogger(__name__)

BATCH = 1000
"""Rows of a record batch, as `datasets` writes them."""
_AT_ONCE = 4
_FINGERPRINT = 16  # digits of the request that `datasets` takes for the content's name


class ExportConfig(JobConfig):
    """Write a token corpus as a Hugging Face dataset in the official Geneformer layout."""

    corpus: str = Field(description="token corpus")
    output: str = Field(description="directory or s3:// URI of the dataset, by custom NAME.dataset")
    cells_per_file: int = Field(25_000, ge=1, description="cells of a data file, of 16 kB each at most in V1 [cells]")


def export_dataset(
    corpus: Corpus, directory: str, cells_per_file: int = 25_000, names: Mapping[str, str] | None = None
) -> str:
    """Write a corpus as a dataset and return its URI; one that was written before is left as it is.

    `names` gives obs columns other names in the dataset.

    `state.json`, without which nothing loads a dataset, is written last. On a disk the whole folder appears by one
    rename; in an object store it is claimed for this export first, and a rerun goes on with the files that are there.

    Raises
    ------
    InputError
        The directory holds something else, or the beginnings of another export.
    """
    uri = storage.absolute(directory)
    names = _renamed(corpus, names or {})
    renamed = {"names": names} if names else {}
    request = schema.request_digest(corpus=corpus.manifest.digest, cells_per_file=cells_per_file, format=1, **renamed)
    if _finished(uri, request):
        logger.info("%s is complete already: nothing to do", uri)
        return uri
    try:
        if not storage.is_local(uri):
            claim(uri, request)
        with storage.new_directory(uri) as staged:
            _fill(corpus, staged, cells_per_file, request, names)
    except (InputError, OSError):
        if not _finished(uri, request):
            raise
        logger.info("another run of the same request finished first; its result is this one")
    return uri


def _finished(uri: str, request: str) -> bool:
    """Tell whether this very export is complete at a URI."""
    state = storage.join(uri, STATE)
    return storage.exists(state) and storage.read_json(state).get("_fingerprint") == request[:_FINGERPRINT]


def _renamed(corpus: Corpus, names: Mapping[str, str]) -> dict[str, str]:
    """Return the obs columns that get another name.

    Raises
    ------
    InputError
        Two columns would have one name.
    """
    changed = {old: new for old, new in names.items() if old in corpus.manifest.obs_kinds and old != new}
    columns = [changed.get(name, name) for name in dataset_schema(corpus).names]
    if twice := {name for name in columns if columns.count(name) > 1}:
        fix = "Choose other names."
        raise InputError("names of the dataset's columns", "every column needs its own", listing(twice), fix)
    return changed


def _fill(corpus: Corpus, folder: str, cells_per_file: int, request: str, renamed: Mapping[str, str]) -> None:
    """Write the files of the dataset that are not there yet, each in one step, the one that makes it whole last."""
    starts = range(0, corpus.manifest.rows, cells_per_file)
    names = [f"data-{i:05d}-of-{len(starts):05d}.arrow" for i in range(len(starts))]
    columns = dataset_schema(corpus, renamed)

    def write(name: str, start: int) -> None:
        target = storage.join(folder, name)
        if storage.exists(target):
            return
        with storage.atomic_file(target) as path, pa.ipc.new_stream(str(path), columns) as writer:
            for piece in _rows(corpus, start, min(start + cells_per_file, corpus.manifest.rows)):
                official = piece.rename_columns([renamed.get(name, name) for name in piece.column_names])
                writer.write_table(_official(official, columns), max_chunksize=BATCH)

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(write, names, starts))
    description = f"token corpus {corpus.uri}, digest {corpus.manifest.digest}"
    storage.write_bytes(storage.join(folder, schema.VOCABULARY), corpus.vocabulary.to_json())
    storage.write_bytes(storage.join(folder, INFO), info_json(columns, description))
    storage.write_bytes(storage.join(folder, STATE), state_json(names, request[:_FINGERPRINT]))


def dataset_schema(corpus: Corpus, renamed: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the columns of a corpus as a dataset has them, some obs columns by other names."""
    fixed = [
        pa.field(schema.INPUT_IDS, pa.list_(pa.int64())),
        pa.field(schema.LENGTH, pa.int64()),
        pa.field(schema.CELL_ID, pa.string()),
        pa.field(schema.N_COUNTS, pa.float64()),
    ]
    kinds = corpus.manifest.obs_kinds
    obs = [pa.field((renamed or {}).get(name, name), schema.OBS_TYPES[kind]) for name, kind in kinds.items()]
    return with_features(pa.schema([*fixed, *obs]))


def _official(cells: pa.Table, columns: pa.Schema) -> pa.Table:
    return pa.table([cells[field.name].cast(field.type) for field in columns], schema=columns)


def _rows(corpus: Corpus, start: int, stop: int) -> Iterator[pa.Table]:
    """Yield cells `start .. stop` of a corpus, a piece of a shard at a time."""
    first = 0
    for part in corpus.manifest.parts:
        low, high = max(start - first, 0), min(stop - first, part.rows)
        for begin in range(low, high, 8 * BATCH):
            yield corpus.read(corpus.part_uri(part), begin, min(begin + 8 * BATCH, high))
        first += part.rows
