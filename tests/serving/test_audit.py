"""The audit log: what a line holds, that files may be moved away, and that a full disk or a flood stops nobody."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cellray.errors import InputError
from serving.access import Asked, Caller
from serving.audit import AuditLog, audit_entry

ASKED = Asked(
    "5b1e",
    "POST",
    "/v1/embeddings",
    200,
    0.12345,
    model="default",
    cells=64,
    tokens=9,
    more={"counts": 3},
    client="10.0.0.7",
)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_asked_what_and_nothing_of_the_cells() -> None:
    at = datetime(2026, 3, 1, 12, 0, 0, 5000, tzinfo=UTC)
    assert audit_entry(Caller("ana"), ASKED, at) == {
        "time": "2026-03-01T12:00:00.005+00:00",
        "key": "ana",
        "client": "10.0.0.7",
        "method": "POST",
        "path": "/v1/embeddings",
        "model": "default",
        "cells": 64,
        "status": 200,
        "ms": 123.5,
        "request_id": "5b1e",
    }
    assert audit_entry(None, ASKED, at)["key"] is None


def test_every_answer_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):  # a second process or a restart appends
        log = AuditLog(str(path))
        for number in range(500):
            log.write(Caller("ana"), Asked(str(number), "GET", "/v1/models", 200, 0.001))
        log.close()
    assert [line["request_id"] for line in lines(path)] == 2 * [str(number) for number in range(500)]


def test_what_is_asked_cannot_forge_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(str(path))
    log.write(None, Asked('x"}\n{"key":"root"', "GET", "/\u2028", 404, 0, model="a\nb %s"))
    log.close()
    [line] = lines(path)
    assert (line["key"], line["request_id"], line["model"]) == (None, 'x"}\n{"key":"root"', "a\nb %s")


def test_the_file_may_be_moved_away(tmp_path: Path) -> None:
    """As logrotate does it."""
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    log = AuditLog(str(path))
    log.write(None, Asked("before", "GET", "/", 200, 0))
    while not path.stat().st_size:
        pass
    path.rename(old)
    log.write(None, Asked("after", "GET", "/", 200, 0))
    log.close()
    assert [line["request_id"] for line in lines(old) + lines(path)] == ["before", "after"]


def test_a_disk_that_fails_is_told_and_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "folder" / "audit.jsonl"
    path.parent.mkdir()
    log = AuditLog(str(path))
    path.unlink()
    path.parent.rmdir()
    with caplog.at_level(logging.ERROR, "ray.serve"):
        for _ in range(3):
            log.write(None, ASKED)
        log.close()
    assert caplog.text.count("the audit log cannot be written; 1 lines are lost") == 1


def test_a_file_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="audit_file: it must be a file that can be written"):
        AuditLog(str(tmp_path / "missing" / "audit.jsonl"))
