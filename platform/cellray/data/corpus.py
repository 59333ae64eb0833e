"""A finished token corpus: its manifest, its vocabulary, its cells as Ray Data or as tables."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cellray import schema, storage
from cellray.data.parts import Unit
from cellray.errors import InputError
from cellray.schema import CorpusManifest, PartRecord
from cellray.vocabulary import GeneVocabulary


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
        return [storage.join(self.uri, part.path) for part in self.manifest.parts if part.rows]

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

        A unit's key is a digest of the shard's content, the range and `parameters`.
        """
        units = []
        for index, part in enumerate(self.manifest.parts):
            for start in range(0, part.rows, cells_per_unit):
                stop = min(start + cells_per_unit, part.rows)
                key = schema.request_digest(shard=part.sha256, start=start, stop=stop, **parameters)
                units.append(Unit(key, storage.join(self.uri, part.path), part.sha256, index, start, stop))
        return units


def read_rows(uri: str, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
    """Read rows `start .. stop` of a shard, touching only the row groups they lie in."""
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


def damaged_shards(corpus: Corpus, at_once: int = 8) -> list[str]:
    """Return the shards that are missing or whose bytes are not those of the manifest, reading all of them."""

    def broken(part: PartRecord) -> str | None:
        uri = storage.join(corpus.uri, part.path)
        whole = storage.exists(uri) and storage.sha256_file(uri) == part.sha256
        return None if whole else part.path

    with ThreadPoolExecutor(at_once) as threads:
        return [path for path in threads.map(broken, corpus.manifest.parts) if path is not None]
