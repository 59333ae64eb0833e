"""Tells the log how far a stage is: in cells, or in what else its units are made of."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from cellray.data.parts import Unit

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 5.0


@dataclass(frozen=True)
class Measure:
    """What the progress of a stage is told in.

    Attributes
    ----------
    name
        As people call it.
    of
        How much of it a unit holds: its cost, as near as that is known before.
    """

    name: str
    of: Callable[[Unit], int]


CELLS = Measure("cells", lambda unit: unit.stop - unit.start)


class Progress:
    """Logs what is done, rate and time left, every few seconds.

    Parameters
    ----------
    stage
        Name for the log.
    total
        All there is to do, that of earlier runs included.
    name
        What is counted.
    done
        What earlier runs did: it counts as done and not for the rate.
    """

    def __init__(self, stage: str, total: int, name: str = "cells", done: int = 0) -> None:
        self._stage, self._total, self._name, self._done, self._earlier = stage, total, name, done, done
        self._began = self._logged = time.monotonic()

    def add(self, number: int) -> None:
        """Count as done."""
        self._done += number
        now = time.monotonic()
        if now - self._logged < _LOG_EVERY_S and self._done < self._total:
            return
        rate = (self._done - self._earlier) / max(now - self._began, 1e-9)
        if rate == 0:  # nothing but units without any: there is no telling
            return
        self._logged = now
        logger.info(
            "%s: %s of %s %s, %s %s/s, %.0f s left",
            self._stage,
            f"{self._done:,}",
            f"{self._total:,}",
            self._name,
            f"{rate:,.0f}",
            self._name,
            (self._total - self._done) / rate,
        )
