"""Reads pickles of plain tables without running anything they name.

Geneformer's dictionaries are pickles whose values are numpy scalars. This loader admits dict, list, tuple, str, int,
float, bool, None and numeric numpy scalars (where asked for, also nested dicts with defaults), and refuses every other
name a pickle asks for.
"""

import pickle
from collections.abc import Mapping
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


def _empty_dict(*_: object) -> dict[Any, Any]:
    """Stand in for `collections.defaultdict`: a plain dict, whatever its factory."""
    return {}


class _PlainUnpickler(pickle.Unpickler):
    names: Mapping[tuple[str, str], Any] = {
        **dict.fromkeys(_DTYPE_NAMES, _Dtype),
        **dict.fromkeys(_SCALAR_NAMES, _scalar),
    }

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Resolve the names numpy scalars need; refuse all others."""
        if (module, name) in self.names:
            return self.names[module, name]
        raise pickle.UnpicklingError(f"the name {module}.{name}")


class _NestedUnpickler(_PlainUnpickler):
    names: Mapping[tuple[str, str], Any] = {
        **_PlainUnpickler.names,
        ("collections", "defaultdict"): _empty_dict,
        ("builtins", "list"): list,
    }


def load_plain_dict(path: Path) -> dict[str, str | int | float]:
    """Read a pickled dict of strings to strings or numbers.

    Raises
    ------
    InputError
        The file is missing, too large, no pickle, no such dict, or asks for anything but plain values.
    """
    fix = "Use the dictionaries released with Geneformer."
    value = _load(path, _PlainUnpickler, _MAX_BYTES, fix)
    if not isinstance(value, dict):
        raise InputError(str(path), "the pickle must hold a dict", type(value).__name__, fix)
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str | int | float):
            raise InputError(str(path), "the dict must map strings to strings or numbers", f"{key!r}: {item!r}", fix)
    return value


def load_nested_dict(path: Path, most_bytes: int = 4 << 30) -> dict[Any, Any]:
    """Read a pickled dict of dicts, lists, tuples, text and numbers, as official files of raw shifts are.

    Raises
    ------
    InputError
        The file is missing, too large, no pickle, no dict, or asks for anything but plain values.
    """
    fix = "Use a file of raw shifts that holds numbers alone."
    value = _load(path, _NestedUnpickler, most_bytes, fix)
    if not isinstance(value, dict):
        raise InputError(str(path), "the pickle must hold a dict", type(value).__name__, fix)
    return value


def _load(path: Path, unpickler: type[_PlainUnpickler], most_bytes: int, fix: str) -> Any:  # noqa: ANN401
    """Unpickle a file with an unpickler of ours; whatever goes wrong is the file's fault."""
    try:
        if path.stat().st_size > most_bytes:
            raise InputError(str(path), f"a dictionary has at most {most_bytes} bytes", f"{path.stat().st_size}", fix)
        with path.open("rb") as file:
            return unpickler(file).load()
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
