"""One question to replicas that fail: which errors are asked again elsewhere, and what they are to the client."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RaySystemError,
    RayTaskError,
    RpcError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import RayServeException, ReplicaUnavailableError

from cellray.errors import InputError
from serving.batcher import ComputeError
from serving.dispatch import ask
from serving.faults import answerable

LOST = [
    ActorDiedError(),
    WorkerCrashedError(),
    ObjectLostError("ab", None, ""),
    OwnerDiedError("ab", None, ""),
    ReplicaUnavailableError("it starts"),
    ActorUnavailableError("no answer", None),
    OutOfMemoryError("the node's memory ran out"),
    TaskCancelledError(),
]


class Response:
    """Stands where Serve's response does."""

    def __init__(self, answer: Awaitable[object]) -> None:
        self._answer = answer

    def __await__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204
        return self._answer.__await__()

    def cancel(self) -> None:
        """Nothing goes on."""


def failing(*errors: Exception) -> tuple[Callable[[], Response], list[Exception]]:
    """Return a deployment that raises these one after the other and then answers, and those that it raised."""
    raised: list[Exception] = []

    async def answer() -> str:
        if len(raised) < len(errors):
            raised.append(errors[len(raised)])
            raise raised[-1]
        return "answered"

    return lambda: Response(answer()), raised


def name_of(error: object) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", [*LOST, ComputeError("torch ran out of memory")], ids=name_of)
def test_what_is_the_replicas_is_asked_once_more(error: Exception) -> None:
    retried: list[int] = []
    call, _ = failing(error)
    assert asyncio.run(ask(call, 60, lambda: retried.append(1))) == "answered"
    assert retried == [1]
    wrapped, raised = failing(RayTaskError("f", "traceback", error), RayTaskError("f", "traceback", error))
    with pytest.raises(type(error)):
        asyncio.run(ask(wrapped, 60))
    assert len(raised) == 2


@pytest.mark.parametrize("error", [InputError("a", "b", "c", "d"), TimeoutError(), ValueError()], ids=name_of)
def test_what_is_the_askers_is_not(error: Exception) -> None:
    call, raised = failing(error)
    with pytest.raises(type(error)):
        asyncio.run(ask(call, 60))
    assert len(raised) == 1


@pytest.mark.parametrize("error", LOST, ids=name_of)
def test_a_second_lost_replica_is_no_error_of_the_server(error: Exception) -> None:
    found = answerable(RayTaskError("f", "traceback", error))
    assert (found.status, found.code) == (503, "replica_lost")
    assert found.retry_after_s


def test_a_model_that_fails_twice_says_so() -> None:
    found = answerable(ComputeError("OutOfMemoryError in the computation"))
    assert (found.status, found.code) == (500, "compute_failed")
    assert "OutOfMemoryError" in found.message


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (caused(RayServeException("an upstream actor died"), ActorDiedError()), "replica_lost"),
        (caused(RuntimeError("the handle is closed"), ActorDiedError()), "replica_lost"),
        (RayServeException("the router is shut down"), "unavailable"),
        (RaySystemError("no raylet"), "unavailable"),
        (RpcError("the control service does not answer"), "unavailable"),
    ],
)
def test_what_is_the_clusters_is_worth_asking_again(error: Exception, code: str) -> None:
    found = answerable(error)
    assert (found.status, found.code) == (503, code)
    assert found.retry_after_s


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RayTaskError("f", "traceback", ValueError("a bug"))], ids=name_of
)
def test_what_is_a_bug_stays_one(error: Exception) -> None:
    assert answerable(error).status == 500


def test_an_answer_that_serve_cancels_is_asked_once_more() -> None:
    """Nobody cancelled the asker, so it must not end as if its client were gone."""

    async def cancelled() -> None:
        raise asyncio.CancelledError

    call, raised = failing(TaskCancelledError())
    assert asyncio.run(ask(call, 60)) == "answered"
    assert len(raised) == 1
    with pytest.raises(TaskCancelledError):
        asyncio.run(ask(lambda: Response(cancelled()), 60))


def test_who_is_cancelled_stays_so() -> None:
    async def run() -> None:
        never = asyncio.Event()
        asking = asyncio.create_task(ask(lambda: Response(never.wait()), 60))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(TimeoutError):
            await ask(lambda: Response(never.wait()), 0.01)

    asyncio.run(run())
