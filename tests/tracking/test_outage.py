"""A tracking server that is not there: told at once at the start, outlived during a run."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient

from cellray.errors import InputError
from cellray.tracking import patient, start_run
from cellray.tracking import server as reach
from cellray.tracking.patient import PatientTracker
from tests.faulty_proxy import Fault, FaultyProxy
from tests.ports import free_port


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Return a host that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.fixture
def silent(listener: socket.socket) -> str:
    """URL of that host."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def connections(listener: socket.socket) -> int:
    """Count the connections that a host took since it was last asked."""
    listener.setblocking(False)
    number = 0
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            number += 1
    return number


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return hosts as they are looked up, once for each connection; no name server is asked for those of nobody."""
    hosts: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, *given: Any, **named: Any) -> Any:  # noqa: ANN401
        hosts.append(host)
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *given, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return hosts


@pytest.fixture
def another() -> Iterator[str]:
    """URL of a web server that is no MLflow."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>hello</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_address[1]}"
    web.shutdown()
    web.server_close()


def test_an_unreachable_server_is_one_error_after_two_attempts(
    silent: str,
    listener: socket.socket,
    another: str,
    looked_up: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each of which may take seconds: MLflow itself would try for minutes."""
    monkeypatch.setattr(reach, "_ANSWER_S", 1)
    nobody = free_port()
    (tmp_path / "file").write_text("")
    for uri, found in {
        f"http://127.0.0.1:{nobody}": "MlflowException",
        f"postgresql://u:p@127.0.0.1:{nobody}/db": "ConnectionRefusedError",
        silent: r"read timeout=1\)",
        another: "MlflowException",
        "http://no-such-host.invalid:5000": "MlflowException",
        f"sqlite:///{tmp_path}/file/mlflow.db": "NotADirectoryError|FileExistsError",
    }.items():
        looked_up.clear()
        with pytest.raises(InputError, match=rf"MLflow at .*: the tracking server must answer; found .*({found})"):
            start_run(uri, "tests", "run", {}, {})
        assert looked_up.count(urlsplit(uri).hostname or "") <= 2, uri  # other threads look for other hosts
    assert connections(listener) == 2
    assert not [name for name in os.environ if name.startswith("MLFLOW_HTTP_REQUEST")]


def test_what_the_user_set_counts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    with reach.patience(1, 7):
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_records_wait_while_the_server_is_away(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patient, "_FIRST_PAUSE_S", 0.0)
    with FaultyProxy(server) as proxy:
        tracker = start_run(proxy.url, "outage", "run", {}, {})
        assert isinstance(tracker, PatientTracker)
        tracker.log_metrics({"loss": 1.0}, 1)
        assert tracker.lost == 0
        proxy.fail(Fault("reset"))
        for step in range(2, 6):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.set_tags({"model": "first"})
        tracker.set_tags({"model": "last"})
        tracker.log_text("gone", "notes.txt")
        assert tracker.lost == 4 + 1 + 1
        assert "records wait for the tracking server" in caplog.text
        proxy.fail()
        tracker.log_metrics({"loss": 6.0}, 6)
        tracker.finish("FINISHED")
    client = MlflowClient(server)
    history = client.get_metric_history(tracker.run.run_id, "loss")
    assert [point.step for point in history] == list(range(1, 7))
    run = client.get_run(tracker.run.run_id)
    assert (run.info.status, run.data.tags["model"]) == ("FINISHED", "last")
    assert tracker.lost == 1  # the artifact
    assert "1 record(s) of MLflow run" in caplog.text


def test_an_answer_that_got_lost_makes_no_double_point(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server wrote the points, but the connection broke before it said so."""
    monkeypatch.setattr(patient, "_FIRST_PAUSE_S", 0.0)
    with FaultyProxy(server) as proxy:
        tracker = start_run(proxy.url, "outage", "run", {}, {})
        assert isinstance(tracker, PatientTracker)
        proxy.fail(Fault("lost_answer", operations=["POST"], times=1))
        tracker.log_metrics({"loss": 1.0, "rate": 2.0}, 1)
        assert (tracker.lost, proxy.injected["lost_answer"]) == (2, 1)
        tracker.finish("FINISHED")
    assert tracker.lost == 0
    history = MlflowClient(server).get_metric_history(tracker.run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0)]


def test_a_server_that_stays_away_ends_nothing(
    silent: str, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patient, "_ANSWER_S", 1)
    monkeypatch.setattr(patient, "_LAST_RETRIES", 0)
    monkeypatch.setattr(patient, "_FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(patient, "_LONGEST_PAUSE_S", 3600.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tracker = PatientTracker(patient.MlflowRun(silent, "0" * 32, "0"))
    for step in range(100):  # asked once, then left alone for a while
        tracker.log_metrics({"loss": 1.0}, step)
    assert connections(listener) == 1
    with caplog.at_level(logging.WARNING):
        tracker.finish("FAILED")
    assert tracker.lost == 101
    assert "101 record(s)" in caplog.text
