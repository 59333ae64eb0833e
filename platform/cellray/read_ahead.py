"""A cache of a remote file's blocks that fetches the next ones while the last are being worked on.

Made for several sequential readers of one file: HDF5 reads the values and the indices of a sparse matrix in turns, so
that a single window of bytes ahead would be thrown away at each turn. Knows nothing of stores or formats.
"""

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from fsspec.caching import BaseCache, register_cache

BLOCK = 4 << 20
"""Bytes of a block: what one request fetches."""
KEEP = 12
"""Blocks held of one open file, those under way included: 48 MiB."""
AHEAD = 2
"""Blocks fetched ahead of a sequential reader."""


class ReadAheadBlocks(BaseCache):  # type: ignore[misc]  # fsspec has no types
    """An LRU cache of blocks; where a block is read after its predecessor, the next ones are fetched in threads.

    Parameters
    ----------
    blocksize
        Bytes of a block.
    fetcher
        Reads bytes `start .. stop`; is called from several threads.
    size
        Bytes of the file.
    keep
        Most blocks held, more than `2 * (ahead + 1)` for two readers in turns. Memory: `keep * blocksize`.
    ahead
        Blocks fetched ahead, and at the same time.
    """

    name = "cellray-read-ahead"

    def __init__(
        self, blocksize: int, fetcher: Callable[[int, int], bytes], size: int, keep: int = KEEP, ahead: int = AHEAD
    ) -> None:
        super().__init__(blocksize, fetcher, size)
        self.nblocks = -(-size // blocksize)
        self._keep, self._ahead = keep, ahead
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._read: set[int] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=ahead + 1, thread_name_prefix=self.name)

    def _fetch(self, start: int | None, end: int | None) -> bytes:
        """Return bytes `start .. end`, waiting for what is not there yet."""
        start, end = start or 0, self.size if end is None else min(end, self.size)
        if start >= end:
            return b""
        first, last = start // self.blocksize, (end - 1) // self.blocksize
        pieces = []
        for number in range(first, last + 1):
            block = self._block(number, last)
            offset = number * self.blocksize
            pieces.append(block[max(start - offset, 0) : end - offset])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _block(self, number: int, last: int) -> bytes:
        """Return a block that is needed now, ordering those that will be needed next."""
        with self._lock:
            sequential = number - 1 in self._read
            stop = number + self._ahead if sequential else min(last, number + self._ahead)
            future = self._order(number)
            for following in range(number + 1, min(stop, self.nblocks - 1) + 1):
                self._order(following)
            self._read.add(number)
            self._forget()
        return future.result()

    def _order(self, number: int) -> "Future[bytes]":
        """Return a block's future, which is the most recently used then."""
        held = self._blocks.get(number)
        if held is None or (held.done() and held.exception() is not None):  # a block that failed may be asked for again
            self.miss_count += 1
            _NO_COLLECTION.begin()
            self._blocks[number] = self._pool.submit(self._request, number)
            self._blocks[number].add_done_callback(_NO_COLLECTION.end)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _request(self, number: int) -> bytes:
        start = number * self.blocksize
        stop = min(start + self.blocksize, self.size)
        self.total_requested_bytes += stop - start
        return bytes(self.fetcher(start, stop))

    def _forget(self) -> None:
        """Drop what was used longest ago."""
        while len(self._blocks) > self._keep:
            number, future = self._blocks.popitem(last=False)
            future.cancel()
            self._read.discard(number)

    def close(self) -> None:
        """Drop all blocks; requests that are under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._blocks.clear()
            self._read.clear()


class _NoCollection:
    """Keeps Python's cyclic garbage collector from starting while requests are under way.

    h5py holds one lock for the whole process while it waits for bytes, and takes it to free its objects. Should the
    collector start in a thread that brings those bytes, and find an h5py object in a cycle, both would wait forever.
    """

    def __init__(self) -> None:
        self._lock, self._running, self._resume = threading.Lock(), 0, False

    def begin(self) -> None:
        """Count a request; the first one stops the collector."""
        with self._lock:
            if self._running == 0:
                self._resume = gc.isenabled()
                gc.disable()
            self._running += 1

    def end(self, _: object) -> None:
        """Count a request as ended; the last one starts the collector again, if it was on."""
        with self._lock:
            self._running -= 1
            if self._running == 0 and self._resume:
                gc.enable()


_NO_COLLECTION = _NoCollection()
register_cache(ReadAheadBlocks, clobber=True)
