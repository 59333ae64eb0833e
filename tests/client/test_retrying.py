"""When a request is sent again: pauses as told, and an end."""

import pickle
import random
from email.utils import formatdate
from time import time

import pytest

from cellray.api.schema import JobStatus, Limit
from cellray.client.errors import JobError, RefusedError, UnavailableError
from cellray.client.retrying import Retrying, retry_after
from cellray.retries import RetryPolicy


def retrying(patience_s: float = 100, attempts: int = 4) -> Retrying:
    return Retrying(RetryPolicy(attempts, 0.5, 8.0, random.Random(0)), patience_s)  # noqa: S311  # no secret


def test_faults_are_borne_so_often_and_no_more() -> None:
    found = retrying()
    pauses = [found.after_fault() for _ in range(4)]
    assert pauses[3] is None
    for pause, most in zip(pauses[:3], (0.5, 1.0, 2.0), strict=True):
        assert pause is not None
        assert most / 2 <= pause <= most


def test_a_busy_server_is_waited_for_as_long_as_it_asks_and_a_bit() -> None:
    found = retrying(patience_s=1000)
    for _ in range(50):  # far more often than faults
        pause = found.after_refusal(7)
        assert pause is not None
        assert 7 <= pause <= 8.75


def test_patience_ends() -> None:
    found, waited = retrying(patience_s=30), 0.0
    while (pause := found.after_refusal(7)) is not None:
        waited += pause
    assert 20 <= waited <= 30
    assert retrying(patience_s=30).after_refusal(3600) is None  # no use to wait for half of it


def test_without_a_number_pauses_grow() -> None:
    found = retrying()
    pauses = [found.after_refusal(None) or 0 for _ in range(6)]
    assert pauses[5] > pauses[0]


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("12", 12), (" 0 ", 0), ("", None), ("soon", None), ("-3", None), ("1.5", None), (None, None)],
)
def test_what_retry_after_says(told: str | None, seconds: float | None) -> None:
    assert retry_after({} if told is None else {"retry-after": told}) == seconds


def test_retry_after_may_be_a_date() -> None:
    assert retry_after({"retry-after": formatdate(time() + 3600, usegmt=True)}) == pytest.approx(3600, abs=60)
    assert retry_after({"retry-after": formatdate(time() - 60, usegmt=True)}) == 0


def test_errors_survive_pickling() -> None:
    status = JobStatus(id="7", state="failed", progress=0.5, done=1, total=2, error="no memory")
    refused = RefusedError("http://h/v1", 422, "limit_exceeded", "too much", Limit(name="cells", value=2), "ab")
    for error in (refused, UnavailableError("http://h", 3, "refused"), JobError(status)):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert vars(again) == vars(error)
    assert str(refused) == "http://h/v1: too much (limit_exceeded, status 422, request ab)"
    assert str(JobError(status)) == "job 7 failed: no memory"
