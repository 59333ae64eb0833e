"""A finished token corpus: its manifest, its vocabulary, its cells as Ray Data or as tables."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.parts import Unit
from cellray.errors import InputError, listing
from cellray.schema import CorpusManifest, PartRecord
from cellray.vocabulary import GeneVocabulary

ResultT = TypeVar("ResultT")

_RANGE_CELLS = 4096  # cells a read task brings


@dataclass(frozen=True)
class Corpus:
    """A token corpus, opened for reading.

    Attributes
    ----------
    uri
        Its directory.
    manifest, vocabulary
        Checked against each other.
    """

    uri: str
    manifest: CorpusManifest
    vocabulary: GeneVocabulary

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open the corpus at a URI.

        Raises
        ------
        InputError
            There is no finished corpus, or its vocabulary is not the one it was made with.
        """
        uri = storage.absolute(uri)
        manifest = CorpusManifest.load(uri)
        path = storage.join(uri, schema.VOCABULARY)
        vocabulary = GeneVocabulary.load(path)
        if vocabulary.digest != manifest.vocabulary_digest:
            raise InputError(
                path,
                f"the vocabulary must be the one in {schema.MANIFEST}",
                f"digest {vocabulary.digest[:12]} for {manifest.vocabulary_digest[:12]}",
                "Restore the file or tokenize again.",
            )
        return cls(uri, manifest, vocabulary)

    @property
    def shard_uris(self) -> list[str]:
        """The shards that hold cells, in the corpus's order."""
        return [self.part_uri(part) for part in self.manifest.parts if part.rows]

    @property
    def columns(self) -> list[str]:
        """The columns every cell has; a shard that was made for another corpus may hold more."""
        return list(schema.token_schema(self.manifest.obs_kinds).names)

    def part_uri(self, part: PartRecord) -> str:
        """Return where a shard lies: below this corpus, or in the one it was made for."""
        return part.uri_in(self.uri)

    def read(self, uri: str, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read rows `start .. stop` of a shard: the corpus's columns, or some of them, in the corpus's kinds."""
        return self._levelled(read_rows(uri, start, stop, list(columns or self.columns)), columns)

    def read_chosen(self, uri: str, chosen: NDArray[np.bool_]) -> Iterator[pa.Table]:
        """Yield the chosen rows of a shard, row group by row group; groups without one are not read.

        Parameters
        ----------
        chosen
            For each row of the shard. Shape (rows,).
        """
        with storage.open_scattered(uri) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            first = 0
            for i in range(file.num_row_groups):
                own = chosen[first : first + file.metadata.row_group(i).num_rows]
                first += len(own)
                if own.any():
                    yield self._levelled(file.read_row_group(i, self.columns).filter(pa.array(own)), None)

    def _levelled(self, table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        """Give obs columns the corpus's kinds: a shard that was made for another corpus may have its own."""
        for name, kind in self.manifest.obs_kinds.items():
            index = table.schema.get_field_index(name)
            if index >= 0 and table.schema.field(index).type != schema.OBS_TYPES[kind]:
                table = table.set_column(index, name, table[name].cast(schema.OBS_TYPES[kind]))
        return table.select(list(columns or self.columns))

    def ray_dataset(self, columns: Sequence[str] | None = None) -> Any:  # noqa: ANN401  # a ray.data.Dataset
        """Return the cells as a lazy Ray Dataset of Arrow blocks.

        Rows come in the corpus's order if `DataContext.execution_options.preserve_order` is set.

        Parameters
        ----------
        columns
            Those to read, default: all.

        Raises
        ------
        InputError
            The corpus lacks a column.
        """
        import ray

        from cellray.data.session import ensure_ray

        self.require_columns(columns or ())
        ensure_ray()
        ranges = [{"uri": u.uri, "start": u.start, "stop": u.stop} for u in self.plan_units(_RANGE_CELLS)]
        read = partial(_read_ranges, corpus=self, columns=columns)
        dataset = ray.data.from_items(ranges, override_num_blocks=len(ranges))
        return dataset.map_batches(read, batch_format="pyarrow")

    def require_columns(self, columns: Sequence[str]) -> None:
        """Check that the corpus has columns.

        Raises
        ------
        InputError
            It lacks one.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            fix = "Correct the names, or tokenize again with --obs-columns."
            found = f"no {listing(missing)}; the corpus has {listing(self.columns, limit=30)}"
            raise InputError(self.uri, "every column asked for must exist", found, fix)

    def require_column(self, column: str, option: str) -> None:
        """Check that the corpus kept an obs column.

        Raises
        ------
        InputError
            It did not.
        """
        if column not in self.manifest.obs_kinds:
            kept = ", ".join(self.manifest.obs_kinds) or "none"
            raise InputError(
                self.uri,
                f"{option} must name an obs column the corpus kept",
                f"{column!r}; kept: {kept}",
                "Tokenize again with --obs-columns.",
            )

    def plan_units(self, cells_per_unit: int, **parameters: Any) -> list[Unit]:  # noqa: ANN401
        """Cut the shards into row ranges of at most `cells_per_unit` cells.

        A unit's key is a digest of the shard's content, the range, the obs columns and `parameters`; of shards that are
        equal, the second and further ones count as their own.
        """
        units, seen = [], Counter[str]()
        parameters["obs"] = list(self.manifest.obs_kinds.items())
        for index, part in enumerate(self.manifest.parts):
            copy = {"copy": seen[part.sha256]} if seen[part.sha256] else {}
            seen[part.sha256] += 1
            for start in range(0, part.rows, cells_per_unit):
                stop = min(start + cells_per_unit, part.rows)
                key = schema.request_digest(shard=part.sha256, start=start, stop=stop, **copy, **parameters)
                units.append(Unit(key, self.part_uri(part), part.sha256, index, start, stop))
        return units


def read_rows(uri: str, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
    """Read rows `start .. stop` of a shard, touching only the row groups they lie in.

    Raises
    ------
    InputError
        The shard is missing or damaged.
    """
    try:
        return _read_rows(uri, start, stop, columns)
    except (OSError, pa.ArrowException) as error:
        if storage.is_outage(error):
            raise
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error).split("\n", 1)[0]
        fix = "Restore it, or delete it with its manifest and run the job that made it again."
        raise InputError(uri, "a finished result must hold all its parts, unharmed", found, fix) from None


def _read_rows(uri: str, start: int, stop: int, columns: list[str] | None) -> pa.Table:
    with storage.open_scattered(uri) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
        groups, first, begin = [], 0, None
        for i in range(file.num_row_groups):
            last = first + file.metadata.row_group(i).num_rows
            if first < stop and last > start:
                groups.append(i)
                begin = first if begin is None else begin
            first = last
        table = file.read_row_groups(groups, columns=columns)
    return table.slice(start - (begin or 0), stop - start)


def _read_ranges(ranges: pa.Table, corpus: Corpus, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    for item in ranges.to_pylist():
        yield corpus.read(item["uri"], item["start"], item["stop"], columns)


def scan(
    corpus: Corpus, columns: Sequence[str], function: Callable[[PartRecord, pa.Table], ResultT], at_once: int = 8
) -> Iterator[ResultT]:
    """Yield what a function makes of some columns of every shard that holds cells, in the corpus's order.

    For light columns: it runs on threads of this process, and no more than some shards are in memory.
    """

    def one(part: PartRecord) -> ResultT:
        return function(part, corpus.read(corpus.part_uri(part), 0, part.rows, columns))

    with ThreadPoolExecutor(at_once) as threads:
        yield from threads.map(one, (part for part in corpus.manifest.parts if part.rows))


def damaged_shards(corpus: Corpus, at_once: int = 8) -> list[str]:
    """Return the shards that are missing or whose bytes are not those of the manifest, and which; reads all of them."""

    def broken(part: PartRecord) -> str | None:
        uri = corpus.part_uri(part)
        if not storage.exists(uri):
            return f"{part.path} (missing)"
        return None if storage.sha256_file(uri) == part.sha256 else f"{part.path} (altered)"

    with ThreadPoolExecutor(at_once) as threads:
        return [path for path in threads.map(broken, corpus.manifest.parts) if path is not None]
