"""cellray: Geneformer-type single-cell foundation models at cluster scale, on Ray.

Importing this package loads nothing heavy; every submodule is imported where it is used. What notebooks need, `Screen`,
`perturb` and `embed` (see `cellray.infer.notebook`), is loaded when it is first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellray.infer.notebook import Screen, embed, perturb

__version__ = "0.1.0"
__all__ = ["Screen", "__version__", "embed", "perturb"]

_NOTEBOOK = ("Screen", "embed", "perturb")


def __getattr__(name: str) -> Any:  # noqa: ANN401  # a class or a function
    if name in _NOTEBOOK:
        return getattr(import_module("cellray.infer.notebook"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
