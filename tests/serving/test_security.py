"""Headers of every answer, and certificates that are looked at before anything starts."""

import asyncio
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellray.errors import InputError
from serving.security import HEADERS, SecurityHeaders
from serving.tls import tls_options
from tests.serving.certificates import write_certificate


def answered(path: str, own: list[tuple[bytes, bytes]], tls: bool) -> dict[str, str]:
    async def app(scope: object, receive: object, send: Callable[..., Any]) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": own})

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def run() -> None:
        await SecurityHeaders(app, tls)({"type": "http", "path": path}, None, send)  # type: ignore[arg-type]

    asyncio.run(run())
    pairs = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_every_answer_has_them() -> None:
    assert answered("/", [], tls=False) == HEADERS


def test_answers_about_cells_are_not_kept() -> None:
    assert answered("/v1/models", [], tls=False)["cache-control"] == "no-store"


def test_what_an_endpoint_says_stays() -> None:
    own = [(b"x-frame-options", b"SAMEORIGIN"), (b"cache-control", b"max-age=5")]
    found = answered("/v1/models", own, tls=True)
    assert (found["x-frame-options"], found["cache-control"]) == ("SAMEORIGIN", "max-age=5")
    assert found["strict-transport-security"] == "max-age=31536000"


def test_no_foreign_script_runs() -> None:
    directives = dict(part.strip().split(" ", 1) for part in HEADERS["content-security-policy"].split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == "'self'"
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_a_certificate_and_its_key(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "localhost")
    assert tls_options(str(certificate), str(key)) == {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    assert tls_options(None, None) == {}


def test_certificates_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "localhost")
    (tmp_path / "other").mkdir()
    _, other = write_certificate(tmp_path / "other", "localhost")
    (tmp_path / "locked").mkdir()
    _, locked = write_certificate(tmp_path / "locked", "localhost", password=b"secret")
    for wrong, told in (
        ((str(certificate), None), "they go together"),
        ((None, str(key)), "they go together"),
        ((str(certificate), str(other)), "mismatch"),
        ((str(certificate), str(tmp_path / "none.pem")), "No such file"),
        ((str(certificate), str(locked)), "a certificate and its key"),
    ):
        with pytest.raises(InputError, match=told):
            tls_options(*wrong)


def test_the_certificate_of_these_tests_is_good_today(tmp_path: Path) -> None:
    from cryptography import x509

    certificate, _ = write_certificate(tmp_path, "localhost")
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert found.not_valid_before_utc < datetime.datetime.now(datetime.UTC) < found.not_valid_after_utc
