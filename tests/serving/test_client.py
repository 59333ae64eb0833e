"""The client against the server: what it returns is what the jobs give, in the order of the cells, whatever the pieces."""

import asyncio
import logging
import time

import anndata
import httpx2
import numpy as np
import pandas as pd
import pytest

from cellray.client import AsyncClient, Client, RefusedError
from tests.conftest import GENES
from tests.infer.tiny import cells_of
from tests.serving.conftest import Served, json_cells


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.url, progress=False) if False else Client(served.url)
