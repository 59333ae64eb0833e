"""Which cells of a corpus are held out: a function of the cell's place and a seed, not of how the work is cut."""

import numpy as np
from numpy.typing import NDArray


def held_out(first: int, count: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Tell for cells `first .. first + count` of a corpus whether they are held out.

    Each cell is drawn with probability `fraction` by a hash of its number and the seed
    (splitmix64; Steele et al. 2014).

    Returns
    -------
    NDArray[np.bool_]
        Shape (count,).
    """
    offset = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 64))
    z = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + offset
    return uniform(scramble(z)) < fraction


def scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a pseudorandom permutation of the 64-bit numbers, that of splitmix64. Same shape."""
    z = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def uniform(values: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return 64-bit numbers as fractions in [0, 1). Same shape."""
    return np.asarray((values >> np.uint64(11)).astype(np.float64) * 2.0**-53)
