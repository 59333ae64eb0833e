"""The largest weights of a matrix, by a rule that leaves no choice: equal weights are taken in the order they stand in.

`torch.topk` alone takes any of equal weights, and which ones may depend on threads and device. Knows no cells.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Largest(NamedTuple):
    """Some entries of heads x queries x keys, entry by entry."""

    head: NDArray[np.int64]
    query: NDArray[np.int64]
    key: NDArray[np.int64]
    weight: NDArray[np.float32]


def largest(weight_hqk: Tensor, k: int, *, by_query: bool) -> Largest:
    """Return the k largest weights of each head, or of each of its queries; fewer where there are fewer.

    Equal weights are taken by query, then by key. Entries come by head, query and key.
    """
    heads, queries, keys = weight_hqk.shape
    weight_rx = weight_hqk.reshape(heads * queries, keys) if by_query else weight_hqk.reshape(heads, queries * keys)
    if not weight_rx.numel() or not k:
        none = np.empty(0, np.int64)
        return Largest(none, none, none, np.empty(0, np.float32))
    k = min(k, weight_rx.shape[1])
    least_r1 = torch.topk(weight_rx, k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    row_e, place_e = torch.nonzero(weight_rx >= least_r1, as_tuple=True)  # row by row, in order
    weight_e, tie_e = weight_rx[row_e, place_e], weight_rx[row_e, place_e] == least_r1[row_e, 0]
    row, place, tie = (x.cpu().numpy() for x in (row_e, place_e, tie_e))
    room_r = k - np.bincount(row[~tie], minlength=len(weight_rx))
    before = np.cumsum(tie) - tie  # ties that stand before, of this row and of earlier ones
    first_of_row = np.searchsorted(row, np.arange(len(weight_rx)))
    taken = ~tie | (before - before[first_of_row][row] < room_r[row])
    row, place, weight = row[taken], place[taken], weight_e.cpu().numpy()[taken]
    if by_query:
        return Largest(row // queries, row % queries, place, weight)
    return Largest(row, place // keys, place % keys, weight)
