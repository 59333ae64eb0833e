"""cellray: Geneformer-type single-cell foundation models at cluster scale, on Ray.

Importing this package loads nothing heavy; every submodule is imported where it is used. What notebooks need, `embed`,
`predict`, `perturb` and `Screen` (see `cellray.infer.notebook` and its `notebook_predict`), is loaded when it is first
named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellray.infer.notebook import Screen, embed, perturb
    from cellray.infer.notebook_predict import predict

__version__ = "0.1.0"
__all__ = ["Screen", "__version__", "embed", "perturb", "predict"]

_SCREENS = "cellray.infer.notebook"
_NOTEBOOK = {"Screen": _SCREENS, "embed": _SCREENS, "perturb": _SCREENS, "predict": "cellray.infer.notebook_predict"}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # a class or a function
    if name in _NOTEBOOK:
        return getattr(import_module(_NOTEBOOK[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what there is to complete: not what this module itself imports."""
    return sorted(__all__)
