"""Tells the log how far a stage is, in cells."""

import logging
import time

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 5.0


class Progress:
    """Logs cells done, rate and time left, every few seconds."""

    def __init__(self, stage: str, total: int) -> None:
        self._stage, self._total, self._done = stage, total, 0
        self._began = self._logged = time.monotonic()

    def add(self, cells: int) -> None:
        """Count cells as done."""
        self._done += cells
        now = time.monotonic()
        if now - self._logged < _LOG_EVERY_S and self._done < self._total:
            return
        self._logged = now
        rate = self._done / max(now - self._began, 1e-9)
        logger.info(
            "%s: %s of %s cells, %s cells/s, %.0f s left",
            self._stage,
            f"{self._done:,}",
            f"{self._total:,}",
            f"{rate:,.0f}",
            (self._total - self._done) / rate,
        )
