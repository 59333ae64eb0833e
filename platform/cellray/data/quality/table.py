"""A finished quality control, opened for reading: which cells of a file pass, and the metrics behind it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.corpora.corpus import read_rows
from cellray.errors import InputError
from cellray.quality_schema import QualityManifest
from cellray.schema import PartRecord


@dataclass(frozen=True)
class QualityTable:
    """The verdicts of quality control.

    Attributes
    ----------
    uri
        Its directory.
    manifest
        Sources, rules, bounds.
    """

    uri: str
    manifest: QualityManifest

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open the quality control at a URI.

        Raises
        ------
        InputError
            There is none, or it is unfinished.
        """
        uri = storage.absolute(uri)
        return cls(uri, QualityManifest.load(uri))

    def require(self, source_uri: str, source_version: str) -> int:
        """Return a source's index in the manifest.

        Parameters
        ----------
        source_uri
            Absolute, as `cellray.data.sources.locate.expand_sources` gives it.
        source_version
            As `cellray.data.sources.contract.stamp_of` gives it.

        Raises
        ------
        InputError
            Quality control did not read this file, or another version of it.
        """
        fix = "Run jobs.quality_control on the present files, to a new --output."
        for index, source in enumerate(self.manifest.sources):
            if source.uri == storage.absolute(source_uri):
                if source.version != source_version:
                    raise InputError(source_uri, f"it must be as it was when {self.uri} was made", "it changed", fix)
                return index
        names = [source.uri for source in self.manifest.sources]
        found = f"{len(names):,} others, as {names[0]!r}" if names else "none"
        raise InputError(source_uri, f"it must be a source of the quality control {self.uri}", found, fix)

    def passed(self, source_uri: str, source_version: str, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which of the cells `start .. stop` of a source pass. Shape (stop - start,).

        Raises
        ------
        InputError
            Quality control did not read this file, or another version of it.
        """
        index = self.require(source_uri, source_version)
        cells = self.manifest.sources[index].cells
        assert 0 <= start <= stop <= cells, f"rows {start}-{stop} of {cells}"
        passed = np.zeros(stop - start, bool)
        for part in self._parts[index]:
            first, last = max(start, part.start), min(stop, part.stop)
            if first < last:
                uri = storage.join(self.uri, part.path)
                table = read_rows(uri, first - part.start, last - part.start, [schema.FILTER_PASS])
                passed[first - start : last - start] = table[schema.FILTER_PASS].to_numpy()
        return passed

    def samples(self, datasets: Mapping[str, int], limit: int) -> Mapping[str, pd.DataFrame]:
        """Return metrics and verdicts of at most about `limit` cells of each data set, evenly spaced, in one pass.

        Parameters
        ----------
        datasets
            Names of data sets and their numbers of cells.
        limit
            Most cells of each.
        """
        steps = {name: -(-cells // limit) for name, cells in datasets.items()}
        seen = dict.fromkeys(datasets, 0)
        kept: dict[str, list[pd.DataFrame]] = {name: [] for name in datasets}
        for table in self._tables():
            names = table[schema.DATASET]
            for name in pc.unique(names).to_pylist():
                if name in steps:
                    own = table.filter(pc.equal(names, name))
                    chosen = np.arange(-seen[name] % steps[name], own.num_rows, steps[name])
                    seen[name] += own.num_rows
                    kept[name].append(own.take(pa.array(chosen)).to_pandas())
        return {name: pd.concat(frames, ignore_index=True) for name, frames in kept.items() if frames}

    @property
    def _parts(self) -> Mapping[int, list[PartRecord]]:
        """Parts of each source, by its index."""
        parts: dict[int, list[PartRecord]] = {i: [] for i in range(len(self.manifest.sources))}
        for part in self.manifest.parts:
            parts[part.source].append(part)
        return parts

    def _tables(self) -> Iterator[pa.Table]:
        """Yield what pictures need of every part."""
        columns = [schema.DATASET, schema.N_COUNTS, schema.MITO_COUNTS, schema.MITO_FRACTION, schema.N_GENES]
        for part in self.manifest.parts:
            yield read_rows(
                storage.join(self.uri, part.path), 0, part.rows, [*columns, schema.FILTER_PASS, schema.REASON]
            )
