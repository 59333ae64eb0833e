"""Counts cell names that stand in a corpus more than once; cells are told apart by source and row all the same."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellray import storage
from cellray.schema import CELL_ID, PartRecord, RepeatedNames

MAX_CELLS = 50_000_000
"""Most cells whose names are compared (12 bytes each, held at once)."""
_AT_ONCE = 8


def repeated_names(output: str, parts: Sequence[PartRecord]) -> RepeatedNames | None:
    """Count repeated cell names, within sources and across them; None above `MAX_CELLS`.

    Names are compared by 64-bit hashes: among 50 million names the chance that any two collide is below 1e-4.
    """
    if sum(part.rows for part in parts) > MAX_CELLS:
        return None

    def hashes(part: PartRecord) -> NDArray[np.uint64]:
        with storage.open_scattered(part.uri_in(output)) as stream:
            names = pq.read_table(stream, columns=[CELL_ID])[CELL_ID].to_numpy()
        return np.asarray(pd.util.hash_array(names, categorize=False))

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        name = np.concatenate([np.empty(0, np.uint64), *threads.map(hashes, parts)])
    source = np.repeat([part.source for part in parts], [part.rows for part in parts]).astype(np.int32)
    order = np.lexsort((source, name))
    name, source = name[order], source[order]
    same_name = name[1:] == name[:-1]
    same_source = source[1:] == source[:-1]
    first_of_source = np.concatenate([[True], ~(same_name & same_source)])[: len(name)]
    own = name[first_of_source]  # each name once a source
    _, sources_of_name = np.unique(own, return_counts=True)
    return RepeatedNames(within=int((same_name & same_source).sum()), across=int((sources_of_name > 1).sum()))
