"""NaN in JSON: there is none, so what is undefined becomes null."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def finite_or_null(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return plain Python values; NaN and infinity as None."""
    plain = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in plain.items()}
