"""How a server stops and starts, piece by piece: what is refused, what is waited for, what is told before anything."""

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.types import Receive, Scope, Send

from cellray.errors import InputError
from cellray.infer.states import write_states
from serving.config import ServingConfig
from serving.draining import Draining, Guard, InFlight
from serving.faults import HttpError
from serving.starting import address, check_cpus, check_models, check_resources, check_running, reason
from serving.stopping import Started, WithoutRetries
from tests.infer.tiny import model_in
from tests.serving.conftest import small_vocabulary


def config_of(**options: Any) -> ServingConfig:  # noqa: ANN401  # as YAML has them
    return ServingConfig.model_validate({"models": {"m": {"uri": "x"}}, "access": {"auth": "none"}, **options})


def test_a_process_that_stops_refuses_and_counts() -> None:
    flight, gate, seen = InFlight(), asyncio.Event(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope.get("path"), flight.requests))
        await gate.wait()

    async def ask(path: str) -> None:
        await Guard(app, flight)({"type": "http", "path": path}, None, None)  # type: ignore[arg-type]

    async def run() -> None:
        under_way = asyncio.create_task(ask("/v1/embeddings"))
        await asyncio.sleep(0)
        flight.draining = True
        with pytest.raises(HttpError) as refused:
            await ask("/v1/embeddings")
        assert (refused.value.status, refused.value.code) == (503, "draining")
        assert refused.value.retry_after_s
        asking = asyncio.create_task(ask("/readyz"))  # is answered, and not waited for
        await asyncio.sleep(0)
        assert flight.requests == 1
        gate.set()
        await asyncio.gather(under_way, asking)

    asyncio.run(run())
    assert seen == [("/v1/embeddings", 1), ("/readyz", 1)]
    assert flight.requests == 0


def test_all_processes_are_waited_for() -> None:
    now = [0.0]
    draining = Draining(lambda: now[0])
    assert not draining.hear("a", InFlight(2))
    assert not draining.hear("b", InFlight(0))
    draining.begun = True
    assert draining.left() == (2, False)  # neither knows yet: each may let more in
    assert draining.hear("a", InFlight(3))
    draining.hear("a", InFlight(3, draining=True))
    draining.hear("b", InFlight(0, draining=True))
    assert draining.left() == (3, True)
    now[0] = 29.0
    draining.hear("b", InFlight(0, draining=True))
    assert draining.left() == (3, True)
    now[0] = 31.0  # of a nothing was heard: it is lost, and its requests with it
    assert draining.left() == (0, True)


def test_replicas_are_given_the_time_that_requests_may_take() -> None:
    assert config_of().drain == 130
    assert config_of(limits={"request_timeout_s": 5}).drain == 15
    assert config_of(limits={"request_timeout_s": 5}, drain_s=5).drain == 5


def test_serve_that_runs_already_is_used_as_it_is_or_not_at_all() -> None:
    wanted = {"host": "127.0.0.1", "port": 8000}
    plain = {"host": "127.0.0.1", "port": 8000, "ssl_certfile": None, "ssl_keyfile": None, "root_path": ""}
    check_running(wanted, plain, ["another"])
    with pytest.raises(InputError, match="must run with the configured address and TLS; found port 9000"):
        check_running(wanted, plain | {"port": 9000}, [])
    with pytest.raises(InputError, match="found ssl_certfile None, ssl_keyfile None"):  # never plain HTTP for HTTPS
        check_running(wanted | {"ssl_certfile": "/c", "ssl_keyfile": "/k"}, plain, [])
    with pytest.raises(InputError, match="an application 'cellray'"):
        check_running(wanted, plain, ["cellray"])


def test_what_a_machine_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    two = {"uri": "x", "min_replicas": 2, "max_replicas": 2}
    with pytest.raises(InputError, match=r"CPUs.*2\.5 in all; found 2"):
        check_resources(config_of(models={"m": two}), Started(ray=True))
    with pytest.raises(InputError, match=r"GPUs.*0\.5 in all; found 0"):
        check_resources(config_of(models={"m": {"uri": "x", "num_gpus": 0.5}}), Started(ray=True))
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda: 2)
    monkeypatch.setenv("RAY_ADDRESS", "")
    with pytest.raises(InputError, match=r"CPUs.*2\.5 in all; found 2"):  # before Ray starts
        check_cpus(config_of(models={"m": two}))
    check_cpus(config_of())
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:1")
    check_cpus(config_of(models={"m": two}))
    check_resources(config_of(models={"m": two}), Started(ray=False))  # nodes may join a cluster
    check_resources(config_of(), Started(ray=True))


def test_files_are_looked_at_before_anything_starts(tmp_path: Path) -> None:
    uri = model_in(tmp_path, small_vocabulary())
    (tmp_path / "none.parquet").write_text("no table")
    write_states(str(tmp_path / "narrow.parquet"), {"sick": np.zeros(3, np.float32)})
    write_states(str(tmp_path / "right.parquet"), {"sick": np.zeros(128, np.float32)})
    for states, said in (
        ("missing", r"models\.m\.states names a parquet.*no such file"),
        ("none", "parquet"),
        ("narrow", "must have 128 finite numbers"),
    ):
        with pytest.raises(InputError, match=said):
            check_models(config_of(models={"m": {"uri": uri, "states": str(tmp_path / f"{states}.parquet")}}))
    check_models(config_of(models={"m": {"uri": uri, "states": str(tmp_path / "right.parquet")}}))
    (Path(uri) / "vocabulary.json").unlink()
    (Path(uri) / "provenance.json").unlink()
    with pytest.raises(InputError, match=r"no vocabulary\.json"):
        check_models(config_of(models={"m": {"uri": uri}}))


def test_the_reason_is_found_in_a_traceback() -> None:
    told = "It failed to start 3 times.\nTraceback:\n  File x\ncellray.errors.InputError: m: no GPU\n\n  more\n"
    assert reason([told]) == "cellray.errors.InputError: m: no GPU"
    assert reason(["it waits"]) == "it waits"


def test_where_a_server_is_reached_from_its_machine() -> None:
    tls = {"tls_certificate": "c", "tls_key": "k"}
    everywhere = [config_of(access={"auth": "keys"}, host=host, **tls) for host in ("0.0.0.0", "::", "example.org")]  # noqa: S104
    assert [address(each) for each in everywhere] == [
        "https://127.0.0.1:8000",
        "https://[::1]:8000",
        "https://example.org:8000",
    ]


def test_calls_to_a_controller_that_is_ended_on_purpose_are_not_told() -> None:
    seen = io.StringIO()
    with WithoutRetries(seen) as quiet:
        print("(raylet) Task ServeController.graceful_shutdown failed. There are infinite retries", file=quiet)
        print("(raylet) A worker died", file=quiet)
    assert seen.getvalue() == "(raylet) A worker died\n"
