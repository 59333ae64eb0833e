"""What MLflow takes: characters of names, lengths of names and values. Cuts and replaces; says so to its caller."""

import posixpath
import re

MAX_KEY = 250
MAX_PARAM = 6000
OLD_MAX_PARAM = 500
"""Longest parameter that servers before MLflow 2.8 take."""
MAX_TAG = 5000

_NOT_ALLOWED = re.compile(r"[^/\w.\- :]")
_SPELT = str.maketrans({"+": "plus", "%": "percent", "=": "-", ",": " "})


def metric_name(name: str) -> str:
    """Return a name that MLflow takes for a metric or parameter: `f1/CD4+ T` becomes `f1/CD4plus T`."""
    clean = _NOT_ALLOWED.sub("_", name.translate(_SPELT))
    clean = posixpath.normpath(clean).lstrip("./") or "_"  # names may become paths
    return clean[:MAX_KEY]


def tag_name(name: str) -> str:
    """Return a name that MLflow takes for a tag."""
    return metric_name(name)
