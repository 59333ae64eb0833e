"""A quantile sketch for every gene at once, mergeable in any order: how medians of any number of cells are measured.

It is a DDSketch (Masson, Rim & Lee, PVLDB 12, 2195-2205, 2019): a value falls into the bucket `ceil(log_gamma(value))`,
`gamma = (1 + a) / (1 - a)`, and any quantile is known to a share `a`. Sketches are merged by adding whole numbers, so
the result does not depend on how the work was cut, on its order or on who did it. The buckets and the values they stand
for are those of the library `ddsketch` (`LogarithmicMapping`); filling them is done here, for it takes the library
about a microsecond a value and an object a gene, and compiled code over all genes some 20 nanoseconds. Knows nothing
of files, gene names or Ray.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from cellray.data.sources.contract import CountBlock

ACCURACY = 0.0025
"""Largest relative error of a median. Half of it would need nearly twice the memory."""
TARGET_SUM = 10_000.0
"""Total to which each cell's counts are scaled."""
VALUE_RANGE = (1e-60, 1e60)
"""Scaled counts that have a bucket, with much to spare on both sides."""

_BUFFER_VALUES = 1 << 25  # 6 bytes each; the more are grouped at once, the fewer entries are left
_HALF = 1 << 15  # buckets are int16: -32,767..32,767
_SMALL_COUNTS = 64
_LOG_2 = math.log(2)
_GAMMA_MANTISSA = 2 * ACCURACY / (1 - ACCURACY)
_PER_LOG_2 = (
    1 / math.log1p(_GAMMA_MANTISSA) * math.log(2)
)  # buckets a doubling takes; the library's formula, to the bit


@dataclass(frozen=True)
class GeneSketch:
    """Filled buckets of every gene: those of gene g are the entries `first_g[g] .. first_g[g + 1]`, ascending.

    Attributes
    ----------
    first_g
        Shape (genes + 1,), int64.
    bucket_e, count_e
        Bucket and number of values in it. Shape (entries,), int16 and uint32. A gene has at most one value a cell, so
        four thousand million cells fit.
    """

    first_g: NDArray[np.int64]
    bucket_e: NDArray[np.int16]
    count_e: NDArray[np.uint32]

    @classmethod
    def empty(cls, n_genes: int) -> "GeneSketch":
        """Return the sketch of no values."""
        return cls(np.zeros(n_genes + 1, np.int64), np.empty(0, np.int16), np.empty(0, np.uint32))

    def n_values(self) -> NDArray[np.int64]:
        """Return how many values of each gene were seen. Shape (genes,)."""
        before = np.concatenate([[0], np.cumsum(self.count_e, dtype=np.int64)])
        return np.asarray(np.diff(before[self.first_g]))

    def medians(self) -> NDArray[np.float64]:
        """Return each gene's median, NaN where there was no value. Shape (genes,).

        Of an even number of values it is the mean of what stands for the two in the middle. Both are right to a share
        `ACCURACY`, hence so is their mean.
        """
        from ddsketch.mapping import LogarithmicMapping

        low, high, some = _middle_buckets(self.first_g, self.bucket_e, self.count_e)
        used = np.unique(np.concatenate([low[some], high[some]]))
        mapping = LogarithmicMapping(ACCURACY)
        value = np.array([mapping.value(int(bucket)) for bucket in used], np.float64)
        medians = np.full(len(some), np.nan)
        medians[some] = (value[np.searchsorted(used, low[some])] + value[np.searchsorted(used, high[some])]) / 2
        return medians


def merge(sketches: Iterable[GeneSketch]) -> GeneSketch:
    """Return the sketch of all values of sketches over the same genes; at most three are in memory at a time."""
    total: GeneSketch | None = None
    for sketch in sketches:
        if total is None:
            total = sketch
            continue
        assert len(total.first_g) == len(sketch.first_g), "sketches of other genes"
        total = GeneSketch(
            *_merge(total.first_g, total.bucket_e, total.count_e, sketch.first_g, sketch.bucket_e, sketch.count_e)
        )
    assert total is not None, "nothing to merge"
    return total


class SketchBuilder:
    """Takes blocks of counts and makes the sketch of their scaled values.

    Values are first noted as (gene, bucket), in the order in which they come; a full buffer is grouped by gene, which
    touches memory in order and is several times faster than adding to 25,000 histograms here and there.

    Parameters
    ----------
    n_genes
        Genes of the sketch.
    buffer_values
        Values noted before they are grouped, 6 bytes each.
    """

    def __init__(self, n_genes: int, buffer_values: int = _BUFFER_VALUES) -> None:
        self._sketch = GeneSketch.empty(n_genes)
        self._n_genes, self._used = n_genes, 0
        self._reserve(buffer_values)

    def _reserve(self, values: int) -> None:
        self._gene, self._bucket = np.empty(values, np.int32), np.empty(values, np.int16)

    def add(
        self,
        block: CountBlock,
        gene_of_column: NDArray[np.int32],
        passed_n: NDArray[np.bool_],
        n_counts_n: NDArray[np.float64],
    ) -> int:
        """Take the values above zero of a block's cells and return how many there were.

        Parameters
        ----------
        block
            Checked counts; no two columns of a cell are the same gene.
        gene_of_column
            Gene of each column, below zero: leave out. Shape (columns,).
        passed_n
            Which cells count. Shape (cells,).
        n_counts_n
            Total count of each cell, such that count / total * 10,000 lies within `VALUE_RANGE`. Shape (cells,).
        """
        if self._used + len(block.counts) > len(self._gene):
            self._group()
            if len(block.counts) > len(self._gene):
                self._reserve(len(block.counts))
        before = self._used
        self._used = _note(
            block.counts,
            block.columns,
            block.indptr,
            gene_of_column,
            passed_n,
            n_counts_n,
            self._gene,
            self._bucket,
            before,
        )
        return self._used - before

    def _group(self) -> None:
        if self._used:
            new = GeneSketch(*_group(self._gene[: self._used], self._bucket[: self._used], self._n_genes))
            self._sketch = merge([self._sketch, new]) if len(self._sketch.count_e) else new
        self._used = 0

    def finish(self) -> GeneSketch:
        """Return the sketch of all values taken."""
        self._group()
        return self._sketch


@numba.njit(cache=True, nogil=True)
def bucket_of(value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the bucket of a positive value: `LogarithmicMapping(ACCURACY).key(value)` of `ddsketch`."""
    return math.ceil(math.log(value) / _LOG_2 * _PER_LOG_2)  # a whole number: numba's is one too


@numba.njit(cache=True, nogil=True)
def _note(counts, columns, indptr, gene_of_column, passed, n_counts, gene, bucket, used):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Append (gene, bucket) of each value; the logarithm is taken once a cell for each small count."""
    bucket_of_count = np.empty(_SMALL_COUNTS, np.int16)
    for i in range(indptr.size - 1):
        if not passed[i]:
            continue
        bucket_of_count[:] = -_HALF  # not known yet
        for j in range(indptr[i], indptr[i + 1]):
            count = counts[j]
            g = gene_of_column[columns[j]]
            if g < 0 or not count > 0:
                continue
            if count < _SMALL_COUNTS:
                small = int(count)
                if bucket_of_count[small] == -_HALF:
                    bucket_of_count[small] = bucket_of(count / n_counts[i] * TARGET_SUM)
                bucket[used] = bucket_of_count[small]
            else:
                bucket[used] = bucket_of(count / n_counts[i] * TARGET_SUM)
            gene[used] = g
            used += 1
    return used


@numba.njit(cache=True, nogil=True)
def _group(gene, bucket, n_genes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Sort values by gene (a counting sort), then count each gene's buckets."""
    n = gene.size
    start = np.zeros(n_genes + 1, np.int64)
    for j in range(n):
        start[gene[j] + 1] += 1
    for g in range(n_genes):
        start[g + 1] += start[g]
    end = start[:-1].copy()
    grouped = np.empty(n, np.int16)
    for j in range(n):
        g = gene[j]
        grouped[end[g]] = bucket[j]
        end[g] += 1
    first = np.zeros(n_genes + 1, np.int64)
    found, count = np.empty(n, np.int16), np.empty(n, np.uint32)
    histogram = np.zeros(2 * _HALF, np.uint32)
    entries = 0
    for g in range(n_genes):
        low, high = _HALF, -_HALF
        for j in range(start[g], start[g + 1]):
            b = int(grouped[j])
            histogram[b + _HALF] += 1
            low = min(low, b)
            high = max(high, b)
        for b in range(low, high + 1):
            if histogram[b + _HALF]:
                found[entries], count[entries] = b, histogram[b + _HALF]
                histogram[b + _HALF] = 0
                entries += 1
        first[g + 1] = entries
    return first, found[:entries].copy(), count[:entries].copy()


@numba.njit(cache=True, nogil=True)
def _merge(first_a, bucket_a, count_a, first_b, bucket_b, count_b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Merge the ascending buckets of each gene, adding the counts of those that both have."""
    first = np.zeros_like(first_a)
    bucket = np.empty(bucket_a.size + bucket_b.size, np.int16)
    count = np.empty(bucket.size, np.uint32)
    entries = 0
    for g in range(first.size - 1):
        a, b = first_a[g], first_b[g]
        end_a, end_b = first_a[g + 1], first_b[g + 1]
        while a < end_a or b < end_b:
            take_a = b == end_b or (a < end_a and bucket_a[a] <= bucket_b[b])
            take_b = a == end_a or (b < end_b and bucket_b[b] <= bucket_a[a])
            total = np.uint32(0)
            if take_a:
                bucket[entries] = bucket_a[a]
                total += count_a[a]
                a += 1
            if take_b:
                bucket[entries] = bucket_b[b]
                total += count_b[b]
                b += 1
            count[entries] = total
            entries += 1
        first[g + 1] = entries
    return first, bucket[:entries].copy(), count[:entries].copy()


@numba.njit(cache=True, nogil=True)
def _middle_buckets(first, bucket, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the buckets of the two values in the middle of each gene, and which genes have any."""
    n_genes = first.size - 1
    low, high = np.zeros(n_genes, np.int64), np.zeros(n_genes, np.int64)
    some = np.zeros(n_genes, np.bool_)
    for g in range(n_genes):
        n = np.int64(0)
        for e in range(first[g], first[g + 1]):
            n += count[e]
        if n == 0:
            continue
        some[g] = True
        seen = np.int64(0)
        for e in range(first[g], first[g + 1]):
            before, seen = seen, seen + np.int64(count[e])
            if before <= (n - 1) // 2 < seen:
                low[g] = bucket[e]
            if before <= n // 2 < seen:
                high[g] = bucket[e]
                break
    return low, high, some
