"""Counts cell names that stand in a corpus more than once; cells are told apart by source and row all the same."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellray import storage
from cellray.schema import CELL_ID, PartRecord, RepeatedNames

MAX_CELLS = 50_000_000
"""Most cells whose names are compared."""
CELLS_AT_ONCE = 8_000_000
"""Cells compared in one pass over the names, each of which takes about 50 bytes: 400 MB, beside the names of `_AT_ONCE`
shards; a larger corpus is read in several passes."""
_AT_ONCE = 8


class Source(Protocol):
    """A version of a file that cells came from."""

    @property
    def uri(self) -> str: ...  # noqa: D102

    @property
    def version(self) -> str: ...  # noqa: D102


def repeated_names(output: str, parts: Sequence[PartRecord], sources: Sequence[Source] = ()) -> RepeatedNames | None:
    """Count repeated cell names, within sources and across them; None above `MAX_CELLS`.

    Names are compared by 64-bit hashes: among 50 million names the chance that any two collide is below 1e-4.

    Parameters
    ----------
    output
        The corpus's directory.
    parts
        Its shards.
    sources
        Its sources, where the same file may be there more than once, as in the parts of a split that were put together
        again: such count as one.
    """
    cells = sum(part.rows for part in parts)
    if cells > MAX_CELLS:
        return None
    numbers = _numbers(parts, sources)
    ordered = sorted((part for part in parts if part.rows), key=lambda part: numbers[part.source])
    passes = max(1, -(-cells // CELLS_AT_ONCE))
    within = across = 0
    for number in range(passes):
        hashed = partial(_hashes, output=output, number=number, passes=passes)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = list(threads.map(hashed, ordered))
        source = np.repeat(np.array([numbers[p.source] for p in ordered], np.int32), [len(each) for each in found])
        name = np.concatenate([np.empty(0, np.uint64), *found])
        del found
        here = _count(name, source)
        within, across = within + here.within, across + here.across
    return RepeatedNames(within=within, across=across)


def _numbers(parts: Sequence[PartRecord], sources: Sequence[Source]) -> dict[int, int]:
    """Return for each source of the parts the number of the first that is the same file."""
    first: dict[tuple[str, str], int] = {}
    same = {i: first.setdefault((source.uri, source.version), i) for i, source in enumerate(sources)}
    return {part.source: same.get(part.source, part.source) for part in parts}


def _hashes(part: PartRecord, output: str, number: int, passes: int) -> NDArray[np.uint64]:
    """Return the hashes of a shard's names whose turn it is: equal names have the same turn. Shape (some cells,)."""
    with storage.open_scattered(part.uri_in(output)) as stream:
        names = pq.read_table(stream, columns=[CELL_ID])[CELL_ID].to_numpy()
    hashes = np.asarray(pd.util.hash_array(names, categorize=False))
    return hashes if passes == 1 else hashes[hashes % np.uint64(passes) == number]


def _count(name: NDArray[np.uint64], source: NDArray[np.int32]) -> RepeatedNames:
    """Count repeated names.

    Parameters
    ----------
    name
        Hash of each cell's name. Shape (cells,).
    source
        Number of each cell's source, ascending. Shape (cells,).
    """
    order = np.argsort(name, kind="stable")  # cells of one name stay ascending by source
    name, source = name[order], source[order]
    del order
    same_name = name[1:] == name[:-1]
    del name
    new_source = same_name & (source[1:] != source[:-1])  # a name's second, third, ... source begins here
    within = int(same_name.sum()) - int(new_source.sum())
    return RepeatedNames(within=within, across=_names_with(new_source, same_name))


def _names_with(new_source: NDArray[np.bool_], same_name: NDArray[np.bool_]) -> int:
    """Count the runs of one name in which another source begins. Both of shape (cells - 1,)."""
    begins = np.flatnonzero(new_source)
    if not len(begins):
        return 0
    # two such beginnings belong to one name if no other name begins between them
    other_name = np.cumsum(~same_name, dtype=np.int32)[begins]
    return len(np.unique(other_name))
