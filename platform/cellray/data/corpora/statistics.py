"""What the cells of a corpus are like: lengths, how many were cut, labels, sources; light columns, shard by shard.

Memory grows with the input size and the number of distinct labels, not with the cells.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cellray import schema
from cellray.data.corpora.corpus import Corpus, scan
from cellray.schema import PartRecord

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_MOST_LABELS = 100_000


@dataclass
class ColumnStatistics:
    """Values of one obs column.

    Attributes
    ----------
    counts
        Cells of each value, as text; emptied beyond 100,000 distinct values.
    missing
        Cells without one.
    uncounted
        Whether there were too many distinct values to count.
    """

    counts: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    uncounted: bool = False

    def add(self, found: Sequence[tuple[str | None, int]]) -> None:
        """Add the counts of some more cells."""
        for value, n in found:
            if value is None:
                self.missing += n
            elif not self.uncounted:
                self.counts[value] += n
        if len(self.counts) > _MOST_LABELS:
            self.counts, self.uncounted = Counter(), True

    def top(self, n: int) -> list[tuple[str, int]]:
        """Return the `n` commonest values with their cells; of equal ones the first by name."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:n]


@dataclass
class CorpusStatistics:
    """What was counted.

    Attributes
    ----------
    cells, tokens
        Of the whole corpus.
    truncated
        Cells that were cut to the input size.
    length_counts
        Cells of each length. Shape (longest possible + 1,).
    columns
        For each obs column.
    sources
        URI and cells of each source.
    """

    cells: int
    tokens: int
    truncated: int
    length_counts: NDArray[np.int64]
    columns: dict[str, ColumnStatistics]
    sources: list[tuple[str, int]]

    def length_quantile(self, q: float) -> int:
        """Return the smallest length that at least a share `q` of the cells do not exceed."""
        return int(np.searchsorted(np.cumsum(self.length_counts), max(1, np.ceil(q * self.cells))))

    def length_histogram(self, bins: int) -> list[tuple[int, int, int]]:
        """Return first and last length and cells of at most `bins` bins of equal width between the extremes."""
        low, high = self.length_quantile(0), self.length_quantile(1)
        width = -(-(high - low + 1) // bins)
        edges = range(low, high + 1, width)
        return [(e, min(e + width - 1, high), int(self.length_counts[e : e + width].sum())) for e in edges]


def corpus_statistics(corpus: Corpus) -> CorpusStatistics:
    """Count lengths and labels of all cells of a corpus."""
    longest, names = corpus.manifest.encoding.input_size, list(corpus.manifest.obs_kinds)
    lengths = np.zeros(longest + 1, np.int64)
    columns = {name: ColumnStatistics() for name in names}

    def count(part: PartRecord, cells: pa.Table) -> tuple[NDArray[np.int64], list[list[tuple[str | None, int]]]]:
        found = np.bincount(cells[schema.LENGTH].to_numpy(), minlength=longest + 1)
        return found, [_value_counts(cells[name]) for name in names]

    for found, values in scan(corpus, [schema.LENGTH, *names], count):
        lengths += found
        for name, of_column in zip(names, values, strict=True):
            columns[name].add(of_column)
    parts = corpus.manifest.parts
    return CorpusStatistics(
        cells=int(lengths.sum()),
        tokens=int(lengths @ np.arange(longest + 1)),
        truncated=sum(part.counts["truncated"] for part in parts),
        length_counts=lengths,
        columns=columns,
        sources=[(source.uri, source.kept) for source in corpus.manifest.sources],
    )


def _value_counts(column: pa.ChunkedArray) -> list[tuple[str | None, int]]:
    counted = pc.value_counts(column)
    values, counts = counted.field("values").cast(pa.string()).to_pylist(), counted.field("counts").to_pylist()
    return list(zip(values, counts, strict=True))


def describe(statistics: CorpusStatistics, top: int = 10, bins: int = 20) -> str:
    """Tell people, with bars as wide as their terminal allows."""
    s, width = statistics, max(20, min(shutil.get_terminal_size().columns, 120) - 40)
    quantiles = ", ".join(f"{q:.0%} {s.length_quantile(q):,}" for q in QUANTILES)
    lines = [
        f"{s.cells:,} cells, {s.tokens:,} tokens; {s.truncated:,} cells cut ({s.truncated / s.cells:.1%})",
        f"length quantiles [tokens]: {quantiles}",
    ]
    histogram = s.length_histogram(bins)
    most = max(n for _, _, n in histogram)
    lines.extend(
        f"  {f'{low:,}-{high:,}':>13} {n:>12,} {'#' * -(-n * width // most)}".rstrip() for low, high, n in histogram
    )
    for name, column in s.columns.items():
        lines.extend(_describe_column(name, column, s.cells, top))
    lines.append("cells of each source:")
    lines.extend(f"  {n:>12,} {uri}" for uri, n in s.sources)
    return "\n".join(lines)


def _describe_column(name: str, column: ColumnStatistics, cells: int, top: int) -> list[str]:
    if column.uncounted:
        return [f"{name}: more than {_MOST_LABELS:,} distinct values, {column.missing:,} missing"]
    rest = len(column.counts) - top
    lines = [f"{name}: {len(column.counts):,} distinct values, {column.missing:,} missing"]
    lines.extend(f"  {n:>12,} {n / cells:6.1%} {value}" for value, n in column.top(top))
    if rest > 0:
        others = cells - column.missing - sum(n for _, n in column.top(top))
        lines.append(f"  {others:>12,} {others / cells:6.1%} ({rest:,} other values)")
    return lines
