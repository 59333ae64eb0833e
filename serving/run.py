"""Starts a server on this machine and stays in the foreground: `python -m serving.run --config serving/serve.yaml`.

Ray is started for it, or the cluster of RAY_ADDRESS is used. Ctrl-C lets requests end before it stops; a second one
does not. Ends with 0 when told to stop, 2 if what it was told makes no sense, 1 if it cannot start.
"""

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.config import ServingConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Start a server, say so when it is ready, and stop it when told to."""
    signals = Signals()  # before anything that takes time, imports included
    try:
        status = _run(argv, signals)
    except StoppedError:
        status = 0
    if status == 0:
        print("stopped", file=sys.stderr, flush=True)
    return status


def _run(argv: Sequence[str] | None, signals: "Signals") -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.run", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file: serving/serve.yaml is an example")
    path = parser.parse_args(argv).config
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    print("looking at the models ...", flush=True)

    from cellray.errors import InputError, StorageError
    from serving.access import check_access
    from serving.config import read_config
    from serving.starting import NotReadyError, check_cpus, check_models

    try:
        config = read_config(path)
        check_access(config)
        check_cpus(config)
        check_models(config)
        serve_until_stopped(config, signals)
    except (InputError, StorageError) as error:
        print(error, file=sys.stderr)
        return 2
    except NotReadyError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def serve_until_stopped(config: "ServingConfig", signals: "Signals") -> None:
    """Serve until SIGINT or SIGTERM; the second of them ends it at once.

    Raises
    ------
    NotReadyError
        It cannot start.
    """
    from serving.starting import address, await_ready, check_resources, start, start_ray
    from serving.stopping import drain, end

    stop, hurry = signals.wait_for_us()
    if stop.is_set():
        return
    started, gently = start_ray(), False
    try:
        check_resources(config, started)
        if not stop.is_set():
            start(config, started)
            url = address(config)
            if await_ready(config, url, stop):
                print(_greeting(config, url), flush=True)
                stop.wait()
                gently = not drain(config.drain, hurry) and not hurry.is_set()
    finally:
        end(started, config.drain if gently else 0)


class StoppedError(BaseException):
    """Told to stop while nothing was started yet; no `Exception`, which an import or a reader would make its own of."""


class Signals:
    """SIGINT and SIGTERM: before anything is started they end the process as it is, later they are waited for."""

    def __init__(self) -> None:
        self._stop, self._hurry, self._started = threading.Event(), threading.Event(), False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._told)

    def wait_for_us(self) -> tuple[threading.Event, threading.Event]:
        """Return an event that the first signal to stop sets, and one that the second sets."""
        self._started = True
        return self._stop, self._hurry

    def _told(self, *_: object) -> None:
        if not self._started:
            self._started = True  # a second one does not disturb the end
            self._stop.set()  # where a library swallows what is raised here
            raise StoppedError
        (self._hurry if self._stop.is_set() else self._stop).set()


def _greeting(config: "ServingConfig", url: str) -> str:
    """Return what is printed when the server is ready: where it is, and a request to try."""
    name = next(iter(config.models))
    body = json.dumps({"model": name, "cells": [{"id": "c1", "genes": ["ENSG00000136574"], "counts": [3]}]})
    key = "" if config.access.auth == "none" else " -H 'Authorization: Bearer KEY'"
    curl = f"curl {url}/v1/embeddings{key} -H 'Content-Type: application/json' -d '{body}'"
    return f"{url} serves {', '.join(config.models)}\n{curl}"


if __name__ == "__main__":
    sys.exit(main())
