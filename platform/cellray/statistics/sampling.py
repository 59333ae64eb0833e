"""A random sample of rows that depends on neither their order nor how they are cut into parts.

Each row has a random number that is computed from its name; the rows with the smallest numbers are the sample.
"""

import numpy as np
from numpy.typing import NDArray


def mix64(x_n: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers one to one (the finaliser of SplitMix64, Steele et al. 2014)."""
    x_n = x_n + np.uint64(0x9E3779B97F4A7C15)
    x_n = (x_n ^ (x_n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_n = (x_n ^ (x_n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_n ^ (x_n >> np.uint64(31))


def row_keys(
    cell_n: NDArray[np.uint64], gene_n: NDArray[np.int64], digest_g: NDArray[np.uint64], seed: int
) -> NDArray[np.uint64]:
    """Return the random number of each row, from its cell and its gene's digest."""
    salted_g = mix64(digest_g ^ mix64(np.array([seed], np.uint64)))
    return mix64(cell_n ^ salted_g[gene_n])


class BottomSample:
    """Keeps the rows with the smallest keys: a sample without replacement of at most `size` rows.

    Parameters
    ----------
    size
        Most rows kept; memory is at most twice as much and a batch.
    columns
        Numbers a row.
    """

    def __init__(self, size: int, columns: int) -> None:
        self._size = size
        self._key = np.empty(0, np.uint64)
        self._value_nc = np.empty((0, columns))
        self._highest: np.uint64 | None = None

    def add(self, key_n: NDArray[np.uint64], value_nc: NDArray[np.float64]) -> None:
        """Offer rows."""
        if self._highest is not None:
            low = key_n <= self._highest
            key_n, value_nc = key_n[low], value_nc[low]
        self._key = np.concatenate([self._key, key_n])
        self._value_nc = np.concatenate([self._value_nc, value_nc])
        if len(self._key) > 2 * self._size:
            self._cut()

    def _cut(self) -> None:
        # rows of equal key (a cell's name twice) are told apart by their values, so that their order has no say
        order = np.lexsort((*self._value_nc.T[::-1], self._key))[: self._size]
        self._key, self._value_nc = self._key[order], self._value_nc[order]
        if len(order) == self._size:
            self._highest = self._key[-1]

    def sorted_columns(self) -> list[NDArray[np.float64]]:
        """Return each column of the sample, sorted."""
        self._cut()
        return [np.sort(column) for column in self._value_nc.T]
