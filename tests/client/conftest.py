"""A stand-in server and cells to send to it."""

from collections.abc import Iterator

import anndata
import numpy as np
import pandas as pd
import pytest

from tests.client.standin import Standin, standin
from tests.conftest import random_counts


@pytest.fixture
def server() -> Iterator[Standin]:
    with standin() as state:
        yield state


@pytest.fixture
def cells() -> anndata.AnnData:
    """Return 150 cells; number 70 has no gene that the stand-in knows, and number 71 no gene at all."""
    x = random_counts(150, 12, seed=1).tolil()
    x[70, :], x[71, :] = 0, 0
    x[70, 11] = 4
    names = [*(f"G{i}" for i in range(11)), "other"]
    obs = pd.DataFrame(index=[f"cell {i}" for i in range(150)])
    return anndata.AnnData(x.tocsr(), obs=obs, var=pd.DataFrame(index=names))


@pytest.fixture
def wanted_nd(cells: anndata.AnnData) -> np.ndarray:
    """Return what the stand-in makes of them: sum, number and maximum of the counts of known genes."""
    x_ng = cells.X[:, :11].toarray()
    found = np.stack([x_ng.sum(1), (x_ng > 0).sum(1), x_ng.max(1)], axis=1).astype(np.float32)
    found[[70, 71]] = np.nan
    return found
