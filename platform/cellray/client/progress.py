"""Shows how far a call is: a bar on a terminal, or a function of the caller's."""

from collections.abc import Callable
from typing import Any

Show = bool | None | Callable[[float, int], None]
"""True, False: a bar or none; None: a bar where standard error is a terminal; or what to call with (done, total)."""


class Meter:
    """Adds up what is done of a call's parts.

    Parameters
    ----------
    total
        Cells of the call.
    show
        See `Show`.
    """

    def __init__(self, total: int, show: Show) -> None:
        self._total, self._parts, self._done = total, dict[int, float](), 0.0
        self._call = show if callable(show) else None
        self._bar = None if callable(show) or show is False else _bar(total, show)

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def told(self, start: int, done: float) -> None:
        """Take note of how many cells are done of the part that begins at `start`."""
        step = done - self._parts.get(start, 0.0)
        self._parts[start] = done
        self._done += step
        if self._bar is not None:
            self._bar.update(step)
        if self._call is not None:
            self._call(self._done, self._total)


def _bar(total: int, show: bool | None) -> Any:  # noqa: ANN401  # tqdm has no types
    from tqdm import tqdm

    return tqdm(total=total, unit="cell", disable=None if show is None else False, bar_format=_FORMAT)


_FORMAT = "{percentage:3.0f}% |{bar}| {n:.0f}/{total_fmt} cells, {elapsed} gone, {remaining} left"
