"""What obs says of the cells of a row range: which pass the filter, which are marked, their total counts."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cellray.data.sources.contract import CountSource
from cellray.errors import InputError
from cellray.schema import FILTER_PASS, OBS_TYPES


def filter_pass(source: CountSource, start: int, stop: int) -> NDArray[np.bool_]:
    """Return which cells obs column `filter_pass` lets through: those with 1, or all where there is no such column.

    Raises
    ------
    InputError
        The column holds anything but numbers or flags.
    """
    if FILTER_PASS not in source.obs_kinds():
        return np.ones(stop - start, bool)
    return np.asarray(_numbers(source, FILTER_PASS, start, stop) == 1)


def marked(
    source: CountSource, column: str, values: Sequence[str], start: int, stop: int
) -> tuple[NDArray[np.bool_], int]:
    """Return which cells an obs column marks, and how many have no value there; these are not marked.

    Parameters
    ----------
    source
        An open file that has the column.
    column
        Its name.
    values
        What marks a cell, compared as text and regardless of case; if empty, true or 1.
    start, stop
        Row range.

    Raises
    ------
    InputError
        No values are given and the column holds neither flags nor numbers.
    """
    found = source.obs(column, start, stop)
    if not values and pa.types.is_string(found.type):
        raise InputError(
            source.uri,
            f"obs column {column!r} must hold flags (true / false or 1 / 0), or the values that mark must be named",
            "text",
            "Name them with --malignant-values.",
        )
    if not values:
        return _numbers(source, column, start, stop) == 1, found.null_count
    wanted = pa.array([value.lower() for value in values], pa.string())
    hits = pc.is_in(pc.utf8_lower(found.cast(pa.string())), value_set=wanted)
    return np.asarray(hits.to_numpy(zero_copy_only=False), bool), found.null_count


def names_in(source: CountSource, column: str, start: int, stop: int) -> pa.Array:
    """Return an obs column as text, null where missing."""
    return obs_values(source, column, "text", start, stop)


def obs_values(source: CountSource, column: str, kind: str, start: int, stop: int) -> pa.Array:
    """Return an obs column as one kind (see `cellray.schema.OBS_TYPES`), null where missing or, in text, empty.

    A file that lacks the column has missing values.
    """
    if column not in source.obs_kinds():
        return pa.nulls(stop - start, OBS_TYPES[kind])
    values = source.obs(column, start, stop).cast(OBS_TYPES[kind])
    return pc.if_else(pc.equal(values, ""), None, values) if kind == "text" else values


def total_counts(
    source: CountSource, column: str | None, start: int, stop: int, sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each cell's total count: an obs column if one is named, else the row sums.

    Raises
    ------
    InputError
        The column holds anything but positive numbers.
    """
    if column is None:
        return sums
    totals = _numbers(source, column, start, stop)
    if not np.all(totals[sums > 0] > 0):  # a cell without counts needs none: it is dropped
        raise InputError(
            source.uri,
            f"obs column {column!r} must hold positive totals",
            f"{totals.min()}",
            "Correct --n-counts-column.",
        )
    return totals


def _numbers(source: CountSource, column: str, start: int, stop: int) -> NDArray[np.float64]:
    """Read an obs column as numbers; missing values are 0."""
    values = source.obs(column, start, stop)
    try:
        numbers = values.cast(pa.float64()).fill_null(0)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(
            source.uri,
            f"obs column {column!r} must hold numbers",
            f"{values.type} values",
            "Recode or rename the column.",
        ) from None
    return np.asarray(numbers.to_numpy(zero_copy_only=False), np.float64)
