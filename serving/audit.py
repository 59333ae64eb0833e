"""Who asked what, when, and what came of it: a line of JSON for each answer. No counts, no genes, no names of cells.

Lines are written by a thread of their own, so that a slow disk does not hold up answers; what does not fit its queue is
counted and told. The file is appended to by all processes of the server and opened anew once it was moved away, so that
logrotate can rotate it without a word to the server.
"""

import json
import logging
import queue
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from pathlib import Path

from cellray.errors import InputError
from serving.access import Asked, Caller

logger = logging.getLogger("ray.serve")

_MOST_WAITING = 10_000
_TOLD_EVERY = 1_000


class AuditLog:
    """A file of what was asked.

    Parameters
    ----------
    path
        Of the file; lines are appended.

    Raises
    ------
    InputError
        The file cannot be written.
    """

    def __init__(self, path: str) -> None:
        try:
            target = _Target(Path(path), encoding="utf-8")
        except OSError as error:
            fix = "Correct audit_file, or leave it out."
            raise InputError("audit_file", "it must be a file that can be written", str(error), fix) from None
        target.setFormatter(logging.Formatter("%(message)s"))
        waiting: queue.Queue[logging.LogRecord] = queue.Queue(_MOST_WAITING)
        self._handler = _Sender(waiting)
        self._listener = QueueListener(waiting, target)
        self._target = target
        self._listener.start()

    def write(self, caller: Caller | None, asked: Asked) -> None:
        """Add a line; neither blocks nor raises."""
        line = json.dumps(audit_entry(caller, asked, datetime.now(UTC)), separators=(",", ":"))
        self._handler.handle(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Write what waits and close the file."""
        self._listener.stop()
        self._target.close()


def audit_entry(caller: Caller | None, asked: Asked, at: datetime) -> dict[str, str | int | float | None]:
    """Return what the log says of an answer.

    Parameters
    ----------
    caller
        None: nobody knows who.
    at
        When it was answered, with a time zone.
    """
    return {
        "time": at.isoformat(timespec="milliseconds"),
        "key": caller.name if caller else None,
        "client": asked.client,
        "method": asked.method,
        "path": asked.path,
        "model": asked.model,
        "cells": asked.cells,
        "status": asked.status,
        "ms": round(asked.seconds * 1000, 1),
        "request_id": asked.request_id,
    }


class _Target(WatchedFileHandler):
    """Tells the server's log of lines that could not be written, some of them."""

    lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; where the file cannot be opened anew, the thread goes on."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        if self.lost % _TOLD_EVERY == 0:
            logger.exception("the audit log cannot be written; %d lines are lost so far", self.lost + 1)
        self.lost += 1


class _Sender(QueueHandler):
    """Counts lines that find the queue full."""

    lost = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        if self.lost % _TOLD_EVERY == 0:
            logger.error("the audit log is slower than requests; %d lines are lost so far", self.lost + 1)
        self.lost += 1
