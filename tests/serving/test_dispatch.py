"""One question to replicas that fail: which errors are asked again elsewhere, and what they are to the client."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, OwnerDiedError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import ReplicaUnavailableError

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
    assert asyncio.run(ask(call, 5, lambda: retried.append(1))) == "answered"
    assert retried == [1]
    wrapped, raised = failing(RayTaskError("f", "traceback", error), RayTaskError("f", "traceback", error))
    with pytest.raises(type(error)):
        asyncio.run(ask(wrapped, 5))
    assert len(raised) == 2


@pytest.mark.parametrize("error", [InputError("a", "b", "c", "d"), TimeoutError(), ValueError()], ids=name_of)
def test_what_is_the_askers_is_not(error: Exception) -> None:
    call, raised = failing(error)
    with pytest.raises(type(error)):
        asyncio.run(ask(call, 5))
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
