"""Starts a server on this machine and stays in the foreground: `python -m serving.run --config serving/serve.yaml`.

Ray is started for it, or the cluster of RAY_ADDRESS is used. Ctrl-C lets requests end before it stops.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from cellray.data.session import ensure_ray
from cellray.errors import InputError, StorageError
from cellray.models import open_model
from serving.app import build
from serving.config import ServingConfig, read_config

NAME = "cellray"
_READY_S = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Start a server, say so when it is ready, and stop it when told to."""
    parser = argparse.ArgumentParser(prog="python -m serving.run", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file: serving/serve.yaml is an example")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        config = read_config(options.config)
        check_models(config)
        serve_until_stopped(config)
    except (InputError, StorageError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def check_models(config: ServingConfig) -> None:
    """Open the models before anything is started: what is wrong with them is told here in one line.

    Raises
    ------
    InputError
        A model is not there or damaged.
    """
    for options in config.models.values():
        open_model(options.uri, options.tracking_uri)


def serve_until_stopped(config: ServingConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    import ray
    from ray import serve

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    start_ray()
    try:
        start(config)
        url = address(config)
        if await_ready(config, url, stop):
            print(_greeting(config, url), flush=True)
            stop.wait()
        print("stopping: requests under way may end", file=sys.stderr, flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


def start_ray() -> None:
    """Start Ray on this machine, or connect to the cluster of RAY_ADDRESS.

    Ray lets its workers give way to everything else, which suits batch work: a server's clients on the same machine
    would push it aside. So here they do not; the thread that computes gives way to those that speak HTTP.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    ensure_ray()


def start(config: ServingConfig) -> None:
    """Start Serve with the address of a configuration, and deploy the models."""
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    tls = {}
    if config.tls_certificate is not None:
        tls = {"ssl_certfile": config.tls_certificate, "ssl_keyfile": config.tls_key}
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=config.host, port=config.port, **tls),
    )
    serve.run(build(config), name=NAME, route_prefix="/")


def address(config: ServingConfig) -> str:
    """Return where a server is reached from its own machine."""
    host = "127.0.0.1" if config.host == "0.0.0.0" else config.host  # noqa: S104  # compared, not bound
    scheme = "http" if config.tls_certificate is None else "https"
    return f"{scheme}://[{host}]:{config.port}" if ":" in host else f"{scheme}://{host}:{config.port}"


def await_ready(config: ServingConfig, url: str, stop: threading.Event) -> bool:
    """Wait until all models answer; False if told to stop before."""
    if config.tls_certificate is not None:  # its name need not be this machine's: Serve's own word must do
        return not stop.is_set()
    until = time.monotonic() + _READY_S
    while not stop.is_set() and time.monotonic() < until:
        try:
            with urlopen(f"{url}/readyz", timeout=10) as answer:  # noqa: S310  # http, and our own
                if answer.status == 200:
                    return True
        except (URLError, OSError):
            pass
        stop.wait(0.2)
    return False


def _greeting(config: ServingConfig, url: str) -> str:
    """Return what is printed when the server is ready: where it is, and a request to try."""
    name = next(iter(config.models))
    body = json.dumps({"model": name, "cells": [{"id": "c1", "genes": ["ENSG00000136574"], "counts": [3]}]})
    key = "" if config.access.auth == "none" else " -H 'Authorization: Bearer KEY'"
    curl = f"curl {url}/v1/embeddings{key} -H 'Content-Type: application/json' -d '{body}'"
    return f"{url} serves {', '.join(config.models)}\n{curl}"


if __name__ == "__main__":
    sys.exit(main())
