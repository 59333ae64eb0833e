"""The client against a server that fails in every way it may: results stay aligned, and errors say what to do."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from fastapi.responses import Response

from cellray.api.schema import JobState, JobStatus
from cellray.client import AsyncClient, Client, JobError, ModelChangedError, RefusedError, UnavailableError, sending
from cellray.config import API_KEY
from cellray.errors import InputError
from tests.client.standin import Standin, failing, standin
from tests.faulty_proxy import Fault, FaultyProxy
from tests.serving.certificates import write_certificate


def equal(found_nd: np.ndarray, wanted_nd: np.ndarray) -> None:
    np.testing.assert_allclose(found_nd, wanted_nd, rtol=1e-6)


def posts(server: Standin) -> int:
    return sum(method == "POST" for method, _ in server.requests)


def test_rows_are_those_of_the_cells(server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray) -> None:
    with Client(server.url, in_flight=1) as client:
        found_nd = client.embed(cells)
        equal(found_nd, wanted_nd)
        assert found_nd.dtype == np.float32
        equal(client.embed(cells[::-1]), wanted_nd[::-1])
        equal(client.embed(cells[3:4]), wanted_nd[3:4])
        assert client.embed(cells[:0]).shape == (0, 3)
    assert [len(body) for body in server.bodies[:3]] == [64, 64, 22]
    assert server.parameters[0] == {"model": "default", "pooling": "cell", "layer": -1}
    assert not any("cell" in name for body in server.bodies for name in body.ids)  # names stay here


def test_what_became_of_cells_is_told(
    server: Standin, cells: anndata.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Client(server.url) as client:
        found = client.embed_with_notes(cells)
    assert found.notes.index.tolist() == cells.obs_names.tolist()
    assert found.notes.index[found.notes["genes_mapped"] == 0].tolist() == ["cell 70", "cell 71"]
    assert found.model is not None
    assert found.model.digest == "d1"
    assert "2 of 150 cells have no gene that the model knows" in caplog.text


def test_async_is_the_same(server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray) -> None:
    async def run() -> list[np.ndarray]:
        async with AsyncClient(server.url, in_flight=2) as client:
            return await asyncio.gather(*(client.embed(cells) for _ in range(3)))

    for found_nd in asyncio.run(run()):
        equal(found_nd, wanted_nd)


def test_within_a_running_loop_the_other_client_works(
    server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray
) -> None:
    """As in a notebook."""

    async def run() -> np.ndarray:
        with Client(server.url) as client:
            return client.embed(cells)

    equal(asyncio.run(run()), wanted_nd)


def test_a_few_requests_are_under_way_at_a_time(server: Standin, cells: anndata.AnnData) -> None:
    server.together, server.delay_s, server.limits = 3, 0.05, {"cells_per_request": 10}
    with Client(server.url, in_flight=3) as client:
        client.embed(cells)
    assert server.most_busy == 3
    assert posts(server) == 15


def test_pieces_fit_the_limits(server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray) -> None:
    server.limits = {"cells_per_request": 40, "body_mb": 0.002}
    with Client(server.url) as client:
        equal(client.embed(cells), wanted_nd)
    assert max(len(body) for body in server.bodies) < 40  # the body decides


def test_no_request_needs_more_than_half_of_the_queue(
    server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray
) -> None:
    server.limits = {"max_queued_cells": 9}
    with Client(server.url) as client:
        equal(client.embed(cells), wanted_nd)
        client.perturb(cells[:20])
    assert {len(body) for body in server.bodies} == {4, 2}


def test_limits_that_were_lowered_since_are_found_out(
    server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray
) -> None:
    server.refuses_above = 9
    with Client(server.url) as client:
        equal(client.embed(cells), wanted_nd)


def test_a_limit_that_fewer_cells_do_not_help_is_told(server: Standin, cells: anndata.AnnData) -> None:
    limit = {"name": "genes_per_cell", "value": 5.0}
    server.faults = [failing(422, code="limit_exceeded", limit=limit)] * 9
    with Client(server.url, in_flight=1) as client, pytest.raises(RefusedError) as caught:
        client.embed(cells)
    assert (caught.value.status, caught.value.code, caught.value.limit.name) == (
        422,
        "limit_exceeded",
        "genes_per_cell",
    )  # type: ignore[union-attr]
    assert posts(server) == 1


def test_a_busy_server_is_asked_again_after_the_time_it_says(
    server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray
) -> None:
    server.faults = [failing(429, {"retry-after": "1"}), failing(503, {"retry-after": "1"})]
    with Client(server.url, in_flight=1) as client:
        equal(client.embed(cells[:5]), wanted_nd[:5])
    first, second, third = server.at[-3:]
    assert second - first >= 1
    assert third - second >= 1


def test_patience_has_an_end(server: Standin, cells: anndata.AnnData) -> None:
    server.faults = [failing(429, {"retry-after": "30"})] * 9
    with Client(server.url, patience_s=20) as client, pytest.raises(UnavailableError) as caught:
        client.embed(cells[:5])
    assert posts(server) == 1  # no use to wait for less than the server asks
    assert str(caught.value) == (
        f"{server.url}/v1/embeddings?model=default: no answer in 1 attempts; the last: status 429: it is busy"
    )


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 415, 422, 500])
def test_refusals_come_in_the_servers_words_and_once(server: Standin, cells: anndata.AnnData, status: int) -> None:
    server.faults = [failing(status, code="odd", request_id="5b1e")]
    with Client(server.url) as client, pytest.raises(InputError) as caught:
        client.embed(cells[:5])
    told = f"{server.url}/v1/embeddings?model=default: it is odd (odd, status {status}, request 5b1e)"
    assert str(caught.value) == told
    assert posts(server) == 1


@pytest.mark.parametrize("kind", ["reset", "lost_answer", "truncated", "reset_body"])
def test_connections_that_break_are_made_again(
    server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray, kind: str
) -> None:
    with FaultyProxy(server.url, [Fault(kind, times=2)]) as proxy, Client(proxy.url, in_flight=1) as client:
        equal(client.embed(cells), wanted_nd)
        assert proxy.injected[kind] == 2


def test_a_proxy_that_lost_its_server_is_asked_again(
    server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray
) -> None:
    """Unlike a 500 in the server's words."""

    async def plain() -> Response:
        return Response("Internal Server Error", 500, media_type="text/plain")

    server.faults = [plain, plain]
    with Client(server.url, in_flight=1) as client:
        equal(client.embed(cells[:5]), wanted_nd[:5])
    assert posts(server) == 3


def test_nobody_there_names_the_address() -> None:
    with Client("http://127.0.0.1:9", attempts=2) as client, pytest.raises(ConnectionError) as caught:
        client.models()
    assert str(caught.value).startswith("http://127.0.0.1:9/v1/models: no answer in 2 attempts; the last: ConnectError")


def test_one_version_of_the_model_answers_all_cells(
    server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    server.digests = ["old", "old", "new"]
    with caplog.at_level(logging.WARNING), Client(server.url, in_flight=1) as client:
        found = client.embed_with_notes(cells)
    equal(found.embedding_nd, wanted_nd)
    assert [len(body) for body in server.bodies] == [64, 64, 22, 64, 64]
    assert found.model is not None
    assert found.model.digest == "new"
    assert "the model was replaced meanwhile; 2 requests are sent again" in caplog.text


def test_a_model_that_never_stays_is_an_error(
    server: Standin, cells: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_PAUSE_S", 0.01)
    server.digests = [f"version {i}" for i in range(99)]
    with Client(server.url, in_flight=1) as client, pytest.raises(ModelChangedError, match="Ask again"):
        client.embed(cells)


@pytest.mark.parametrize("encoding", ["zstd", "gzip", None])
def test_bodies_may_be_compressed(
    server: Standin, cells: anndata.AnnData, wanted_nd: np.ndarray, encoding: str | None
) -> None:
    with Client(server.url, compression=encoding) as client:  # type: ignore[arg-type]
        equal(client.embed(cells), wanted_nd)
    assert server.headers[-1].get("content-encoding") == encoding


def test_progress_reaches_all_cells(
    server: Standin, cells: anndata.AnnData, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[float, int]] = []
    with Client(server.url, in_flight=1) as client:
        client.embed(cells, progress=lambda done, total: told.append((done, total)))
        assert told == [(64, 150), (128, 150), (150, 150)]
        client.embed(cells, progress=True)
        assert "150/150 cells" in capsys.readouterr().err
        client.embed(cells)
        assert capsys.readouterr().err == ""  # no terminal, no bar


def test_the_key_is_sent_and_never_shown(
    server: Standin, cells: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server.url, "cellray_abc") as client:
        client.models()
        assert "abc" not in repr(client)
    assert server.headers[-1]["authorization"] == "Bearer cellray_abc"
    monkeypatch.setenv(API_KEY, "cellray_env")
    with Client(server.url) as client:
        client.models()
    assert server.headers[-1]["authorization"] == "Bearer cellray_env"
    with pytest.raises(InputError, match="key: printable"):
        Client(server.url, "a\nb")


def test_a_key_over_plain_http_to_others_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Client("http://models.example.org", "cellray_abc").close()
    assert "unencrypted; use https" in caplog.text
    assert "abc" not in caplog.text


def test_https_with_a_certificate_of_ones_own(cells: anndata.AnnData, wanted_nd: np.ndarray, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "localhost")
    with standin(ssl_certfile=str(certificate), ssl_keyfile=str(key)) as server:
        with Client(server.url, ca=str(certificate)) as client:
            equal(client.embed(cells), wanted_nd)
        with Client(server.url, attempts=1) as client, pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY"):
            client.models()
    with pytest.raises(InputError, match="ca: a file of certificates"):
        Client(server.url, ca=str(tmp_path / "none.pem"))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host?x=1", "http://me:pw@host"])
def test_addresses_that_make_no_sense(url: str) -> None:
    with pytest.raises(InputError, match="url: http"):
        Client(url)


def test_misspelled_options_are_told(server: Standin, cells: anndata.AnnData) -> None:
    with pytest.raises(InputError, match="'timeout'"):
        Client(server.url, timeout=3)  # type: ignore[call-arg]
    with Client(server.url) as client:
        for call in (
            lambda: client.embed(cells, layers=1),  # type: ignore[call-arg]
            lambda: client.embed(cells, goal="well"),  # type: ignore[call-arg]
            lambda: client.embed(cells, pooling="gene"),  # type: ignore[arg-type]
            lambda: client.perturb(cells, genes=["G1"]),  # type: ignore[call-arg]
            lambda: client.perturb(cells, kind="remove"),  # type: ignore[arg-type]
        ):
            with pytest.raises(InputError):
                call()
    assert posts(server) == 0


def test_another_kind_of_server_is_found_out(server: Standin, cells: anndata.AnnData) -> None:
    with Client(server.url + "/elsewhere") as client, pytest.raises(RefusedError, match="status 404"):
        client.models()

    async def page() -> object:
        from fastapi.responses import HTMLResponse

        return HTMLResponse("<p>log in")

    server.faults = [page]  # type: ignore[list-item]
    with Client(server.url) as client, pytest.raises(RefusedError, match="is this the address of a cellray server"):
        client.embed(cells[:3])


def test_a_closed_client_says_so(server: Standin) -> None:
    client = Client(server.url)
    client.models()
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.models()


def step(state: JobState, progress: float = 0.0, error: str | None = None) -> JobStatus:
    return JobStatus(id="j1", state=state, progress=progress, done=0, total=4, seconds_left=None, error=error)


def test_a_job_is_waited_for_and_forgotten(server: Standin, cells: anndata.AnnData) -> None:
    server.job_steps = [step("queued"), step("running", 0.5), step("done", 1.0)]
    told: list[float] = []
    with Client(server.url) as client:
        found = client.perturb(cells, perturb=["G1"], progress=lambda done, total: told.append(done))
    assert found["cell_id"].tolist() == cells.obs_names.tolist()
    assert found.attrs["counts"] == {"perturbations": 150}
    assert found.attrs["model"]["digest"] == "d1"
    assert told == [75, 150, 150]
    assert server.requests[-2:] == [("GET", "/v1/jobs/j1/result"), ("DELETE", "/v1/jobs/j1")]
    assert server.parameters[0]["perturb"] == ["G1"]
    assert server.parameters[0]["top"] is None


def test_perturbations_that_do_not_apply_are_told(
    server: Standin, cells: anndata.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    """Of all pieces together, in one line; and nothing is said where all of them apply."""
    server.limits = {"cells_per_request": 2}
    with caplog.at_level(logging.WARNING, "cellray.client"), Client(server.url) as client:
        client.perturb(cells[:4])
        assert not caplog.messages
        server.counts = {"perturbations": 0, "perturbations that do not apply to a cell": 3}
        found = client.perturb(cells[:4])
    assert found.attrs["counts"] == {"perturbations": 0, "perturbations that do not apply to a cell": 6}
    [told] = caplog.messages
    assert told.startswith("6 of 6 (cell, perturbation) pairs do not apply and have no row")


def test_cells_of_one_name_are_not_perturbed(server: Standin, cells: anndata.AnnData) -> None:
    """Their rows could not be told apart; embeddings go by place."""
    same = cells[:4].copy()
    same.obs_names = ["a", "b", "a", "c"]
    with Client(server.url) as client:
        with pytest.raises(InputError, match=r"obs_names: cells differ by name.*more than once: 'a'"):
            client.perturb(same)
        assert posts(server) == 0
        assert len(client.embed(same)) == 4


def test_a_lost_answer_begins_no_second_job(server: Standin, cells: anndata.AnnData) -> None:
    """All attempts of one request bring one key, and other requests bring others."""
    with (
        FaultyProxy(server.url, [Fault("lost_answer", times=2, operations=("POST",))]) as proxy,
        Client(proxy.url) as client,
    ):
        client.perturb(cells[:3])
        client.perturb(cells[:3])
        client.embed(cells[:3])
    asked = zip(server.requests, server.headers, strict=True)
    keys = [headers.get("idempotency-key") for (method, _), headers in asked if method == "POST"]
    assert keys == [keys[0], keys[0], keys[0], keys[3], None]
    assert len(set(keys)) == 3


def test_a_job_that_fails_says_why(server: Standin, cells: anndata.AnnData) -> None:
    server.job_steps = [step("queued"), step("failed", 0.5, "no memory")]
    with Client(server.url) as client, pytest.raises(JobError, match="job j1 failed: no memory"):
        client.perturb(cells)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


POLLED, DROPPED = ("GET", "/v1/jobs/j1"), ("DELETE", "/v1/jobs/j1")


def test_nobody_waits_any_more_so_the_job_is_cancelled(server: Standin, cells: anndata.AnnData) -> None:
    server.job_steps = [step("queued"), step("running")]

    async def run() -> None:
        async with AsyncClient(server.url) as client, asyncio.TaskGroup() as beside:
            with pytest.raises(TimeoutError):
                await asked(client, beside)

    async def asked(client: AsyncClient, beside: asyncio.TaskGroup) -> None:
        async with asyncio.timeout(None) as patience:
            beside.create_task(end(patience))
            await client.perturb(cells)

    async def end(patience: asyncio.Timeout) -> None:
        await asyncio.to_thread(wait_until, lambda: POLLED in server.requests)
        patience.reschedule(0)

    asyncio.run(run())
    assert server.requests[-1] == DROPPED
    assert server.requests.count(DROPPED) == 1


def test_an_interrupt_cancels_the_job(server: Standin, cells: anndata.AnnData) -> None:
    """Ctrl-C in a script."""
    server.job_steps = [step("queued"), step("running")]

    def interrupt() -> None:
        wait_until(lambda: POLLED in server.requests)
        os.kill(os.getpid(), signal.SIGINT)

    person = threading.Thread(target=interrupt)
    person.start()
    with Client(server.url) as client, pytest.raises(KeyboardInterrupt):
        client.perturb(cells)
    person.join()
    wait_until(lambda: DROPPED in server.requests)


def test_a_script_that_closes_nothing_ends(server: Standin) -> None:
    code = f"from cellray.client import Client; c = Client({server.url!r}); print(len(c.models()))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=150, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)


def test_the_client_loads_neither_ray_nor_torch() -> None:
    heavy = ("ray", "torch", "transformers", "mlflow", "numba", "pandas", "anndata", "scipy")
    code = f"import sys, cellray.client; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
