"""Callers with keys: who is let in, what they are told who are not, and how the file is followed."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cellray.config import API_KEYS
from cellray.errors import InputError
from serving.access import AccessError, Caller
from serving.key_gate import KeyFile, KeyGate
from serving.keys import Key, append_key, digest_of, new_key
from serving.rate import RateLimiter

ADDRESS = "192.0.2.7"


class Clock:
    """Seconds as the test says."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def header(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@pytest.fixture
def add(path: Path) -> Callable[..., str]:
    """Add a key to the file and return it."""

    def add(name: str, *scopes: str, **more: object) -> str:
        secret = new_key()
        append_key(path, name, Key.model_validate({"sha256": digest_of(secret), "scopes": scopes, **more}))
        return secret

    return add


def refusal(gate: KeyGate, headers: dict[str, str], scope: str = "embed") -> AccessError:
    with pytest.raises(AccessError) as caught:
        gate.admit(headers, [scope] if scope else [], ADDRESS)  # type: ignore[arg-type]
    return caught.value


def test_a_key_opens_what_its_scopes_say(path: Path, add: Callable[..., str]) -> None:
    key, admin = add("ana", "embed", "perturb"), add("root", "admin")
    gate = KeyGate(KeyFile(str(path)), 600, None)
    assert gate.admit(header(key), ["perturb"], ADDRESS) == Caller("ana", frozenset({"embed", "perturb"}))
    assert gate.admit({"authorization": f"bearer  {key} "}, ["embed"], ADDRESS).name == "ana"
    assert (refusal(gate, header(key), "admin").status, refusal(gate, header(key), "admin").code) == (
        403,
        "scope_missing",
    )
    assert refusal(gate, header(admin), "embed").status == 403


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "no_key"),
        ({"authorization": ""}, "no_key"),
        ({"authorization": "Bearer "}, "no_key"),
        ({"authorization": "Basic YTpi"}, "no_key"),
        ({"authorization": "Bearer " + "x" * 10_000}, "no_key"),
        ({"authorization": "Bearer cellray_" + "x" * 43}, "invalid_key"),
        ({"authorization": "Bearer \u00ff\u00fe"}, "invalid_key"),
    ],
)
def test_others_are_not_let_in(path: Path, add: Callable[..., str], headers: dict[str, str], code: str) -> None:
    add("ana", "embed")
    found = refusal(KeyGate(KeyFile(str(path)), 600, None), headers)
    assert (found.status, found.code) == (401, code)
    assert "xxx" not in found.message  # what was sent is not echoed


def test_the_hash_is_no_key(path: Path, add: Callable[..., str]) -> None:
    """Whoever reads the file cannot use it."""
    key = add("ana", "embed")
    gate = KeyGate(KeyFile(str(path)), 600, None)
    assert refusal(gate, header(digest_of(key))).code == "invalid_key"


def test_an_expired_key_is_told_so(path: Path, add: Callable[..., str]) -> None:
    key = add("ana", "embed", expires="2020-01-01")
    found = refusal(KeyGate(KeyFile(str(path)), 600, None), header(key))
    assert (found.status, found.code) == (401, "expired_key")


def test_each_key_has_its_rate(path: Path, add: Callable[..., str]) -> None:
    clock = Clock()
    slow, usual = add("slow", "embed", requests_per_minute=6), add("usual", "embed")
    gate = KeyGate(KeyFile(str(path), clock), 120, None, RateLimiter(clock))
    gate.admit(header(slow), ["embed"], ADDRESS)
    found = refusal(gate, header(slow))
    assert (found.status, found.code, found.retry_after_s) == (429, "rate_limited", pytest.approx(10))
    for _ in range(20):  # ten seconds' worth at once
        gate.admit(header(usual), ["embed"], ADDRESS)
    assert refusal(gate, header(usual)).retry_after_s == pytest.approx(0.5)
    clock.now += 10
    gate.admit(header(slow), ["embed"], ADDRESS)


def test_over_a_long_time_no_more_pass_than_flow_in() -> None:
    """Against counting: of requests every 10 ms for 10 minutes, 60 a minute and the burst."""
    clock, limiter = Clock(), RateLimiter()
    limiter = RateLimiter(clock)
    passed = 0
    for step in range(60_000):
        clock.now = 100 + step / 100
        passed += limiter.take("ana", 60) == 0
    assert passed == pytest.approx(600 + 10, abs=1)


def test_waiting_as_told_is_enough() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for _ in range(200):
        wait = limiter.take("ana", 90)
        clock.now += wait * 1.0001
        if wait:
            assert limiter.take("ana", 90) == 0


def test_keys_come_and_go_without_a_restart(
    path: Path, add: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    first = add("first", "embed")
    gate = KeyGate(KeyFile(str(path), clock), 600, None)
    second = add("second", "embed")
    assert refusal(gate, header(second)).code == "invalid_key"  # not looked at yet
    clock.now += 3
    assert gate.admit(header(second), ["embed"], ADDRESS).name == "second"
    path.write_text(path.read_text().splitlines()[1])
    os.utime(path, (time.time() + 5, time.time() + 5))
    clock.now += 3
    assert refusal(gate, header(first)).code == "invalid_key"
    with caplog.at_level(logging.ERROR, "ray.serve"):
        path.write_text("half a li")
        clock.now += 3
        assert gate.admit(header(second), ["embed"], ADDRESS).name == "second"
    assert "keys stay as they were" in caplog.text
    path.write_text("# all revoked\n")
    clock.now += 3
    assert refusal(gate, header(second)).code == "invalid_key"


def test_no_file_lets_nobody_in(path: Path, add: Callable[..., str]) -> None:
    clock = Clock()
    key = add("only", "embed")
    gate = KeyGate(KeyFile(str(path), clock), 600, None)
    path.unlink()
    clock.now += 3
    assert refusal(gate, header(key)).code == "invalid_key"


def test_a_server_without_keys_does_not_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="it names a file of keys"):
        KeyFile(str(path))
    path.write_text("# nobody yet\n")
    with pytest.raises(InputError, match="there must be a key"):
        KeyFile(str(path))
    monkeypatch.delenv(API_KEYS, raising=False)
    with pytest.raises(InputError, match=r"CELLRAY_API_KEYS: there must be a key.*serving\.keys new"):
        KeyFile(None)


def test_keys_may_be_a_secret_of_the_cluster(
    path: Path, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = add("ana", "embed")
    monkeypatch.setenv(API_KEYS, path.read_text())
    assert KeyGate(KeyFile(None), 600, None).admit(header(key), ["embed"], ADDRESS).name == "ana"
