"""Rank value encoding: counts of a cell become its genes' token ids, most characteristic gene first.

Works on one block of compressed sparse rows at a time, in compiled code and without the interpreter lock. It knows
nothing of files, gene names or Ray: the caller says which token and which median each column has.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from cellray.vocabulary import TokenLayout

UNKNOWN_GENE = -1
"""Token of a column whose gene the vocabulary lacks."""

_DIGIT_BITS = np.uint64(11)
_BUCKETS = 1 << 11
_LOW_DIGIT = np.uint64(_BUCKETS - 1)
_POSITION_BITS = np.uint64(16)  # token ids fit 16 bits, so a cell has fewer known genes than that
_POSITION = np.uint64((1 << 16) - 1)
_ONE = np.uint64(1)
_MOST_SWAPS = 1  # a gene, while ties are put right: beyond that it is faster to sort by token first


@dataclass(frozen=True)
class ColumnGenes:
    """What the columns of a count matrix mean to a vocabulary.

    Attributes
    ----------
    token_g
        Token id of each column, `UNKNOWN_GENE` where there is none. Shape (columns,), int32. No id stands twice.
    median_g
        Nonzero median of each column's gene, in counts per 10,000. Shape (columns,), float64.
    """

    token_g: NDArray[np.int32]
    median_g: NDArray[np.float64]


@dataclass(frozen=True)
class EncodedCells:
    """Token rows of a block: row i is `input_ids[offsets[i]:offsets[i + 1]]`.

    Attributes
    ----------
    input_ids
        All rows one after the other, uint16.
    offsets
        Shape (cells + 1,), int64.
    n_genes
        Known genes with a count above zero, before the cut to the input size. Shape (cells,), int32.
        A cell with none has an empty row, without special tokens.
    """

    input_ids: NDArray[np.uint16]
    offsets: NDArray[np.int64]
    n_genes: NDArray[np.int32]


def encode_rows(
    counts: NDArray[np.generic],
    columns: NDArray[np.integer],
    indptr: NDArray[np.integer],
    genes: ColumnGenes,
    layout: TokenLayout,
) -> EncodedCells:
    """Encode the rows of a CSR block.

    Genes of a cell are sorted by count / median, descending, in float64; ties by ascending token id. The total count of
    the cell, by which the method also divides, is one positive number a cell and changes no order.

    Parameters
    ----------
    counts, columns, indptr
        The CSR arrays of cells x genes raw counts; no column stands twice in a row, every column index is within
        `genes` (see `cellray.data.checks`).
    genes
        Token and median of each column.
    layout
        Input size and special tokens.

    Returns
    -------
    EncodedCells
        One token row a cell, in the cells' order.

    Notes
    -----
    Rank value encoding: Theodoris et al., Nature 618, 616-624 (2023), Methods.
    """
    ids, offsets, n_genes = _encode_rows(
        counts,
        columns,
        indptr,
        genes.token_g,
        genes.median_g,
        layout.max_genes,
        -1 if layout.cls_id is None else layout.cls_id,
        -1 if layout.eos_id is None else layout.eos_id,
    )
    return EncodedCells(ids, offsets, n_genes)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _encode_rows(counts, columns, indptr, token_g, median_g, max_genes, cls_id, eos_id):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Encode each row in turn; see `encode_rows`. An id of -1 is a special token the layout lacks.

    Written for the compiler: what a row does not count is written over instead of branched around, and unsigned indices
    need no look whether they count from the end.
    """
    n_cells = indptr.size - 1
    longest, bound = 0, 0
    for i in range(n_cells):
        n = indptr[i + 1] - indptr[i]
        longest = max(longest, n)
        bound += min(n, max_genes) + 2
    out = np.empty(bound, np.uint16)
    offsets = np.zeros(n_cells + 1, np.int64)
    n_genes = np.zeros(n_cells, np.int32)
    key, key_spare = np.empty(longest, np.float64), np.empty(longest, np.float64)
    token, token_spare = np.empty(longest, np.uint16), np.empty(longest, np.uint16)
    order, spare = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    end = 0
    for i in range(n_cells):
        row, row_columns = counts[indptr[i] : indptr[i + 1]], columns[indptr[i] : indptr[i + 1]]
        n = 0
        for j in range(row.size):
            g = np.uint64(row_columns[j])
            key[n], token[n] = row[j] / median_g[g], token_g[g]
            n += (token_g[g] != UNKNOWN_GENE) & (row[j] > 0)
        n_genes[i] = n
        if n > 0:
            if not _order_descending(key[:n], token, order, spare, _MOST_SWAPS * n):  # ties in plenty
                _sort_by_token(key[:n], token[:n], key_spare, token_spare)
                _order_descending(key[:n], token, order, spare, n * n)
            if cls_id >= 0:
                out[end] = cls_id
                end += 1
            kept = out[end : end + min(n, max_genes)]
            for j in range(kept.size):
                kept[j] = token[order[j] & _POSITION]
            end += kept.size
            if eos_id >= 0:
                out[end] = eos_id
                end += 1
        offsets[i + 1] = end
    return out[:end].copy(), offsets, n_genes


@numba.njit(cache=True, nogil=True)
def _sort_by_token(key, token, key_spare, token_spare):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Sort pairs by token in place: a radix sort with two digits of eight bits."""
    n = key.size
    start = np.zeros((2, 257), np.int32)
    for j in range(n):
        start[0, (token[j] & 255) + 1] += 1
        start[1, (token[j] >> 8) + 1] += 1
    for b in range(256):
        start[0, b + 1] += start[0, b]
        start[1, b + 1] += start[1, b]
    for j in range(n):
        b = token[j] & 255
        key_spare[start[0, b]], token_spare[start[0, b]] = key[j], token[j]
        start[0, b] += 1
    for j in range(n):
        b = token_spare[j] >> 8
        key[start[1, b]], token[start[1, b]] = key_spare[j], token_spare[j]
        start[1, b] += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _order_descending(key, token, order, spare, most_swaps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the descending order of positive float64 keys, ties by token, into the low 16 bits of `order`.

    The bits of positive floats sort as whole numbers. Counted down from the largest key and shifted so that the
    smallest fits 22 bits, they are sorted by two passes over digits of 11 bits; keys that agree so far are put right by
    an insertion pass on the full keys and the tokens, so the order is exact. Returns False, with the work undone, if
    that pass needs more than `most_swaps` steps: many equal keys, whose tokens came in another order.
    """
    n = key.size
    bits = key.view(np.uint64)
    top, low = bits[0], bits[0]
    for j in range(1, n):
        top, low = max(top, bits[j]), min(low, bits[j])
    shift = np.uint64(0)
    while (top - low) >> shift >= 1 << (2 * _DIGIT_BITS):
        shift += np.uint64(1)
    low_start = np.zeros(_BUCKETS + 1, np.uint32)
    high_start = np.zeros(_BUCKETS + 1, np.uint32)
    for j in range(n):
        rank = (top - bits[j]) >> shift
        spare[j] = (rank << _POSITION_BITS) | np.uint64(j)
        low_start[(rank & _LOW_DIGIT) + _ONE] += np.uint32(1)
        high_start[(rank >> _DIGIT_BITS) + _ONE] += np.uint32(1)
    for b in range(_BUCKETS):
        low_start[b + 1] += low_start[b]
        high_start[b + 1] += high_start[b]
    for j in range(n):
        b = (spare[j] >> _POSITION_BITS) & _LOW_DIGIT
        order[low_start[b]] = spare[j]
        low_start[b] += np.uint32(1)
    for j in range(n):
        b = order[j] >> (_POSITION_BITS + _DIGIT_BITS)
        spare[high_start[b]] = order[j]
        high_start[b] += np.uint32(1)
    swaps = 0
    order[0] = spare[0]
    for j in range(1, n):
        entry, i = spare[j], j
        at = entry & _POSITION
        while i > 0 and order[i - 1] >> _POSITION_BITS == entry >> _POSITION_BITS:
            before = order[i - 1] & _POSITION
            if bits[before] > bits[at] or (bits[before] == bits[at] and token[before] < token[at]):
                break
            order[i] = order[i - 1]
            i -= 1
        order[i] = entry
        swaps += j - i
        if swaps > most_swaps:
            return False
    return True
