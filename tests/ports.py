"""Ports for servers that tests start: below those that the system gives to clients, so that none is taken meanwhile."""

import os
import random
import socket
from collections.abc import Iterator
from functools import cache
from itertools import count, islice

_FIRST, _LAST = 20_000, 30_000
"""Ray's workers take theirs from below, clients' sockets from above."""
_WORKERS = 10


@cache
def _numbers(process: int) -> Iterator[int]:
    """Yield ports of the part that belongs to this process of pytest, from anywhere on, round and round."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (_LAST - _FIRST) // _WORKERS
    start = random.Random(process).randrange(size)  # noqa: S311  # another run of the tests may go on beside this one
    return (_FIRST + worker % _WORKERS * size + place % size for place in count(start))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port of loopback that nobody listens on; no two calls in a row return the same one."""
    return next(filter(_is_free, islice(_numbers(os.getpid()), 1000)))
