"""Closes the HDF5 library while Python still runs.

A read from a Python stream that fails can leave a property list open inside the library. The process's own exit
handlers then free it by a call into Python, which is gone by that time: a crash after all work is done.
"""

import atexit
import ctypes
from functools import lru_cache
from pathlib import Path

_MAPS = Path("/proc/self/maps")


@lru_cache(maxsize=1)
def close_at_exit() -> None:
    """See that the library is closed before Python ends; does nothing where it cannot be found (beyond Linux)."""
    if not _MAPS.exists():
        return
    files = {line.split(maxsplit=5)[-1] for line in _MAPS.read_text().splitlines() if "/libhdf5" in line}
    for file in files - {name for name in files if "_hl" in Path(name).name}:
        library = ctypes.PyDLL(file)  # keeps Python's lock, which the call back needs
        if hasattr(library, "H5close"):
            atexit.register(library.H5close)
