"""Reads pickles of plain tables without running anything they name.

Geneformer's dictionaries are pickles whose values are numpy scalars. This loader admits dict, list, tuple, str, int,
float, bool, None and numeric numpy scalars, and refuses every other name a pickle asks for.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cellray.errors import InputError

_MAX_BYTES = 256 << 20
_DTYPE_NAMES = {("numpy", "dtype")}
_SCALAR_NAMES = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}
_KINDS = "biuf"


class _Dtype:
    """Stand-in for a pickled numpy dtype: keeps its name and byte order, calls nothing."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _scalar(dtype: _Dtype, data: bytes) -> int | float | bool:
    """Decode the bytes of one numeric numpy scalar into a Python number."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy scalar that is not plain bytes")
    resolved = np.dtype(str(dtype.name))
    if resolved.kind not in _KINDS or resolved.itemsize != len(data):
        raise pickle.UnpicklingError(f"a numpy scalar of type {dtype.name!r}")
    value = np.frombuffer(data, resolved.newbyteorder(">" if dtype.order == ">" else "<"))[0].item()
    assert isinstance(value, int | float | bool)
    return value


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Resolve the two names numpy scalars need; refuse all others."""
        if (module, name) in _DTYPE_NAMES:
            return _Dtype
        if (module, name) in _SCALAR_NAMES:
            return _scalar
        raise pickle.UnpicklingError(f"the name {module}.{name}")


def load_plain_dict(path: Path) -> dict[str, str | int | float]:
    """Read a pickled dict of strings to strings or numbers.

    Raises
    ------
    InputError
        The file is missing, too large, no pickle, no such dict, or asks for anything but plain values.
    """
    fix = "Use the dictionaries released with Geneformer."
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(str(path), f"a dictionary has at most {_MAX_BYTES} bytes", f"{path.stat().st_size}", fix)
        with path.open("rb") as file:
            value = _PlainUnpickler(file).load()
    except FileNotFoundError:
        raise InputError(str(path), "the file must exist", "no such file", "Check the path.") from None
    except (pickle.UnpicklingError, EOFError, MemoryError) as error:
        raise InputError(
            str(path), "a pickle may hold plain dicts, strings, numbers and numpy scalars only", str(error), fix
        ) from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            str(path), "the file must be an intact pickle", f"{type(error).__name__}: {error}", fix
        ) from None
    if not isinstance(value, dict):
        raise InputError(str(path), "the pickle must hold a dict", type(value).__name__, fix)
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str | int | float):
            raise InputError(str(path), "the dict must map strings to strings or numbers", f"{key!r}: {item!r}", fix)
    return value
