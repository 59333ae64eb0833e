"""Count, mean and spread of groups of numbers, gathered batch by batch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class GroupMoments:
    """Count, mean and sum of squared deviations of each group; 24 bytes a group.

    Batches are merged by the formula of Chan, Golub and LeVeque (1979), which keeps the digits of small spreads.
    """

    count: NDArray[np.int64]
    mean: Array
    m2: Array

    @classmethod
    def zeros(cls, *shape: int) -> "GroupMoments":
        """Return moments of nothing, for groups numbered along a shape."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape))

    def add(self, group_n: NDArray[np.int64], value_n: Array) -> None:
        """Add numbers to their groups (flat indices)."""
        size, shape = self.count.size, self.count.shape
        count = np.bincount(group_n, minlength=size)
        mean = np.bincount(group_n, value_n, size) / np.maximum(count, 1)
        m2: Array = np.bincount(group_n, (value_n - mean[group_n]) ** 2, size).astype(np.float64)
        self._merge(count.reshape(shape), mean.reshape(shape), m2.reshape(shape))

    def _merge(self, count: NDArray[np.int64], mean: Array, m2: Array) -> None:
        total = np.maximum(self.count + count, 1)
        delta = mean - self.mean
        self.mean = self.mean + delta * count / total
        self.m2 = self.m2 + m2 + delta**2 * (self.count * (count / total))
        self.count = self.count + count

    def merge_at(self, place: NDArray[np.int64], other: "GroupMoments") -> None:
        """Add the moments of other groups to those at some places, each place once. Both of shape (groups,)."""
        mine = self.at(place)
        mine._merge(other.count, other.mean, other.m2)
        self.count[place], self.mean[place], self.m2[place] = mine.count, mine.mean, mine.m2

    def at(self, place: NDArray[np.int64]) -> "GroupMoments":
        """Return the moments of some groups."""
        return GroupMoments(self.count[place], self.mean[place], self.m2[place])

    def over_last(self) -> "GroupMoments":
        """Return the moments with the groups along the last axis taken together."""
        count = self.count.sum(axis=-1)
        mean = (self.count * self.mean).sum(axis=-1) / np.maximum(count, 1)
        m2 = (self.m2 + self.count * (self.mean - mean[..., None]) ** 2).sum(axis=-1)
        return GroupMoments(count, mean, m2)

    def means(self) -> Array:
        """Return the means; NaN of empty groups."""
        return np.where(self.count > 0, self.mean, np.nan)

    def deviations(self, ddof: int) -> Array:
        """Return standard deviations; NaN where there are not more numbers than `ddof`."""
        spread = np.maximum(self.m2, 0) / np.maximum(self.count - ddof, 1)
        return np.where(self.count > ddof, np.sqrt(spread), np.nan)
