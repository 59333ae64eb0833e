"""Products whose last bits depend on the number of torch's threads, in one thread: so that results do not show it.

MKL adds products of 5 to 11 rows up in another order with more threads, and torch cuts the keys of a single query
among them; larger products and attention of more queries give the same bits with 1 to 8 threads. What is small costs
little in one thread. Knows no model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FEW_ROWS = 32
"""Token rows below which a product is a small one."""


@contextmanager
def steady_sums(rows: int = 0) -> Iterator[None]:
    """Compute in one thread of the CPU if these are few rows; leave training, whose gradients are not steady, alone.

    Parameters
    ----------
    rows
        Of the products within.
    """
    threads = torch.get_num_threads()
    if rows >= FEW_ROWS or threads == 1 or torch.is_grad_enabled():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
