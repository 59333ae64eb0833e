"""Cells of requests become the tokens of tokenization, whatever other requests asked before."""

import numpy as np
import pytest

from cellray.api.wire import CellTable
from serving.encoding import Encoder
from tests.conftest import GENES
from tests.serving.conftest import small_vocabulary


def table(genes: list[str]) -> CellTable:
    n = len(genes)
    return CellTable(["a"], genes, np.array([0, n]), np.arange(n, dtype=np.int32), np.arange(1.0, n + 1))


@pytest.mark.parametrize("joint", ["\n", "\0", ",", '", "'])
def test_no_names_of_genes_pass_for_those_of_another_request(joint: str) -> None:
    """Two names joined to one are another request, whose mapping must not serve this one."""
    vocabulary = small_vocabulary()
    wanted = Encoder(vocabulary, 16)(table(GENES[:6])).rows.input_ids
    encoder = Encoder(vocabulary, 16)
    encoder(table([joint.join(GENES[:2]), *GENES[2:6]]))
    assert encoder(table(GENES[:6])).rows.input_ids.tolist() == wanted.tolist()
