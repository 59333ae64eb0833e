"""Reaches an MLflow store: which one, within how many seconds, and what is said when it does not answer."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cellray.errors import InputError
from cellray.tracking.masking import mask_text

OFF = "none"
_SQLITE = "sqlite:///"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_ANSWER_S = 5
_environment = threading.RLock()


def tracking_uri(uri: str | None) -> str:
    """Return the MLflow tracking URI that is meant, with an absolute path where it is a file.

    None stands for `MLFLOW_TRACKING_URI` or, without that, SQLite in the working directory.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    if uri.startswith(_SQLITE):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).resolve())
    return uri if ":" in uri else str(Path(uri).resolve())


def mlflow_client(uri: str) -> Any:  # noqa: ANN401  # an mlflow.MlflowClient; MLflow is imported late
    """Return a client of a store, without asking the store anything."""
    return mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)


def mlflow() -> Any:  # noqa: ANN401  # the module, imported late
    """Return MLflow, imported so that it neither calls home nor tells of each table it creates."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import; set it to false to be counted
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    import mlflow as module

    return module


@contextmanager
def patience(retries: int, timeout_s: int | None = None) -> Iterator[None]:
    """Bound how long MLflow asks a server that does not answer: by default minutes. What the user set counts more.

    Parameters
    ----------
    retries
        Further attempts after a failed request.
    timeout_s
        Wait for one answer, None for MLflow's own [s].
    """
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}
    if timeout_s is not None:
        wanted["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_s)
    with _environment:  # MLflow reads these at each request, and offers no other way
        ours = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name in ours:
                os.environ.pop(name, None)


@contextmanager
def must_answer(uri: str) -> Iterator[None]:
    """Turn the failure of the store in the block, within seconds, into one clear error.

    Raises
    ------
    InputError
        The store cannot be reached, or what answers is none.
    """
    shown = mask_text(uri)
    fix = "Start the server, correct --tracking-uri (or MLFLOW_TRACKING_URI), or record nothing: --tracking-uri none."
    try:
        _require_place(uri)
        with patience(retries=1, timeout_s=_ANSWER_S):
            yield
    except InputError:
        raise
    except Exception as error:  # MLflow's, requests' and SQLAlchemy's share no base
        found = f"{type(error).__name__}: {in_short(error)}"
        raise InputError(f"MLflow at {shown}", "the tracking server must answer", found, fix) from None


def in_short(error: BaseException) -> str:
    """Return an error's message in one line without secrets."""
    text = mask_text(" ".join(str(error).split()))
    return text if len(text) <= 400 else f"{text[:150]} ... {text[-250:]}"  # the cause stands at the end


def _require_place(uri: str) -> None:
    """Look for a database's host or folder: MLflow itself would try for more than a minute."""
    if uri.startswith(_SQLITE):
        Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        return
    kind = urlsplit(uri).scheme.split("+")[0]
    if kind in _PORTS:
        parts = urlsplit(uri)
        socket.create_connection((parts.hostname or "localhost", parts.port or _PORTS[kind]), _ANSWER_S).close()
