"""A server with keys and a certificate, started as its users start it: who gets what, and what the log says of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata
import httpx2
import numpy as np
import pytest
import yaml

from cellray.client import Client, RefusedError, UnavailableError
from serving.keys import Key, append_key, digest_of, new_key, parse_keys
from serving.security import HEADERS, STRICT_TRANSPORT
from tests.infer.tiny import model_in
from tests.ports import free_port
from tests.serving.certificates import write_certificate
from tests.serving.conftest import SMALL, json_cells, small_vocabulary


@dataclass(frozen=True)
class Secured:
    """A server in a process of its own.

    Attributes
    ----------
    url, certificate
        Of the server.
    keys
        By what they may: embed, perturb, admin, slow (30 requests a minute), revoked.
    keys_file, audit
        Files of the server.
    """

    url: str
    certificate: Path
    keys: dict[str, str]
    keys_file: Path
    audit: Path

    def client(self, name: str | None) -> httpx2.Client:
        import ssl

        headers = {} if name is None else {"authorization": f"Bearer {self.keys.get(name, name)}"}
        trusted = ssl.create_default_context(cafile=self.certificate)
        return httpx2.Client(base_url=self.url, headers=headers, verify=trusted, timeout=60)

    def log(self) -> list[dict[str, object]]:
        """Return the lines that are written; the last one may be under way."""
        return [json.loads(line) for line in self.audit.read_text().splitlines(keepends=True) if line.endswith("\n")]


pytestmark = pytest.mark.own_ray


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    certificate, private = write_certificate(folder, "localhost")
    keys = {name: new_key() for name in ("embed", "perturb", "admin", "slow", "revoked")}
    scopes = {"slow": ["embed"], "revoked": ["embed"]}
    for name, key in keys.items():
        known = {"sha256": digest_of(key), "scopes": scopes.get(name, [name])}
        rate = {"requests_per_minute": 30 if name == "slow" else 6000}
        append_key(folder / "keys.toml", name, Key.model_validate(known | rate))
    port = free_port()
    config = {
        "models": {"default": {"uri": model_in(folder, small_vocabulary()), **SMALL}},
        "access": {"auth": "keys", "keys_file": str(folder / "keys.toml")},
        "audit_file": str(folder / "audit.jsonl"),
        "port": port,
        "tls_certificate": str(certificate),
        "tls_key": str(private),
        "ingress_cpus": 0,
    }
    (folder / "server.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "serving.run", "--config", str(folder / "server.yaml")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        found = Secured(f"https://localhost:{port}", certificate, keys, folder / "keys.toml", folder / "audit.jsonl")
        _await(found, process)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _await(server: Secured, process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    with server.client(None) as client:
        while time.monotonic() < until:
            if process.poll() is not None:
                raise AssertionError(process.communicate()[1])
            try:
                if client.get("/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.2)
    raise AssertionError("the server does not get ready")


REQUESTS = [
    ("GET", "/v1/models", None),
    ("POST", "/v1/embeddings", "embed"),
    ("POST", "/v1/predictions", "embed"),
    ("POST", "/v1/cells", "embed"),
    ("GET", "/v1/example", "embed"),
    ("POST", "/v1/perturbations", "perturb"),
    ("GET", "/v1/jobs", "perturb|admin"),
    ("GET", "/v1/jobs/none", "perturb|admin"),
    ("GET", "/v1/jobs/none/result", "perturb"),
    ("DELETE", "/v1/jobs/none", "perturb|admin"),
    ("GET", "/metrics", "admin"),
]


@pytest.mark.parametrize(("method", "path", "scope"), REQUESTS)
def test_each_endpoint_needs_its_scope(secured: Secured, method: str, path: str, scope: str | None) -> None:
    answers = {}
    for name in (None, "cellray_" + 43 * "x", "embed", "perturb", "admin"):
        with secured.client(name) as client:
            answers[name] = client.request(method, path)
    statuses = {name: answer.status_code for name, answer in answers.items()}
    for stranger, code in ((None, "no_key"), ("cellray_" + 43 * "x", "invalid_key")):
        assert statuses[stranger] == 401
        assert answers[stranger].json()["error"]["code"] == code
        assert answers[stranger].headers["www-authenticate"] == "Bearer"
    for name in ("embed", "perturb", "admin"):
        let_in = scope is None or name in scope.split("|")
        assert (statuses[name] not in (401, 403)) == let_in, statuses
        if not let_in:
            assert answers[name].json()["error"]["code"] == "scope_missing"


def test_all_that_asks_a_model_is_behind_a_key(secured: Secured) -> None:
    """Whatever endpoint is added later."""
    with secured.client(None) as client:
        described = client.get("/openapi.json").json()
    open_to_all = {"/healthz", "/readyz", "/"}
    guarded = {(path, method) for path in described["paths"] for method in described["paths"][path]}
    guarded = {(path, method) for path, method in guarded if path not in open_to_all}
    assert {(path.replace("none", "{job_id}"), method.lower()) for method, path, _ in REQUESTS} == guarded
    assert described["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}


def test_a_key_that_asks_too_often_waits(secured: Secured, cells: anndata.AnnData) -> None:
    answers: list[httpx2.Response] = []
    with secured.client("slow") as client:
        while len(answers) < 200 and (not answers or answers[-1].status_code == 200):
            answers.append(client.get("/v1/models"))
    assert len(answers) > 5  # five at once, and one each two seconds
    assert answers[-1].status_code == 429
    assert answers[-1].json()["error"]["code"] == "rate_limited"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
    with Client(secured.url, secured.keys["slow"], ca=str(secured.certificate)) as patient:
        assert len(patient.embed(cells[:2])) == 2  # the client waits as long as it is told


def test_the_client_works_over_tls_with_a_key(secured: Secured, cells: anndata.AnnData) -> None:
    with Client(secured.url, secured.keys["embed"], ca=str(secured.certificate)) as client:
        found_nd = client.embed(cells)
        assert found_nd.shape == (20, 128)
        assert np.isfinite(found_nd).all()
        with pytest.raises(RefusedError, match="this needs the scope 'perturb'; the key 'embed' has embed"):
            client.perturb(cells)
    with Client(secured.url, secured.keys["perturb"], ca=str(secured.certificate)) as client:
        assert len(client.perturb(cells[:2], top=3)) == 6
    with Client(secured.url, secured.keys["embed"], attempts=1) as client, pytest.raises(UnavailableError):
        client.models()  # a certificate that nobody vouches for
    with pytest.raises(httpx2.TransportError):
        httpx2.get(secured.url.replace("https", "http") + "/healthz")


def test_answers_tell_browsers_what_they_are_not_for(secured: Secured) -> None:
    with secured.client("embed") as client:
        for path in ("/healthz", "/v1/models", "/v1/embeddings", "/none"):
            headers = client.get(path).headers
            assert HEADERS.items() <= dict(headers).items(), path
            assert headers[STRICT_TRANSPORT[0]] == STRICT_TRANSPORT[1]
        assert client.get("/v1/models").headers["cache-control"] == "no-store"
        crossed = client.options(
            "/v1/embeddings", headers={"origin": "https://example.org", "access-control-request-method": "POST"}
        )
        assert "access-control-allow-origin" not in crossed.headers


def wait_for(true: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_log_says_who_asked_what_and_nothing_of_cells(secured: Secured, cells: anndata.AnnData) -> None:
    body = json_cells(cells[:7])
    own = [{"x-request-id": f"log-{i}"} for i in range(3)]
    with secured.client("embed") as client:
        assert client.post("/v1/embeddings", json=body, headers=own[0]).status_code == 200
        assert client.post("/v1/embeddings", json=body | {"model": "../secret"}, headers=own[1]).status_code == 404
    with secured.client(None) as client:
        client.post("/v1/embeddings?genes=SECRETGENE", json=body, headers=own[2])

    def lines() -> list[dict[str, object]]:
        return [line for line in secured.log() if str(line["request_id"]).startswith("log-")]

    wait_for(lambda: len(lines()) >= 3)
    done, unknown, stranger = sorted(lines(), key=lambda line: str(line["request_id"]))
    assert (done["key"], done["path"], done["model"], done["cells"], done["status"]) == (
        "embed",
        "/v1/embeddings",
        "default",
        7,
        200,
    )
    assert set(done) == {"time", "key", "client", "method", "path", "model", "cells", "status", "ms", "request_id"}
    assert (unknown["key"], unknown["status"]) == ("embed", 404)
    assert (stranger["key"], stranger["status"], stranger["cells"]) == (None, 401, None)
    text = secured.audit.read_text()
    assert not any(word in text for word in ("ENSG", "SECRETGENE", "cell0", "counts", *secured.keys.values()))


def test_a_revoked_key_is_refused_soon(secured: Secured) -> None:
    with secured.client("revoked") as client:
        assert client.get("/v1/models").status_code == 200
        lines = secured.keys_file.read_text().splitlines(keepends=True)
        secured.keys_file.write_text("".join(line for line in lines if not line.startswith("revoked")))
        assert "revoked" not in parse_keys(secured.keys_file.read_text(), "keys")
        wait_for(lambda: client.get("/v1/models").status_code == 401)


def run_with(folder: Path, **options: object) -> str:
    """Start a server that must not start; return what it says."""
    config = {"models": {"default": {"uri": str(folder / "none")}}, "port": free_port(), **options}
    (folder / "server.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "serving.run", "--config", str(folder / "server.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    return done.stderr


def test_what_is_wrong_with_access_is_told_at_the_start(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "localhost")
    keys = {"auth": "keys", "keys_file": str(tmp_path / "none.toml")}
    told = run_with(tmp_path, access=keys)
    assert "access.keys_file: it names a file of keys" in told
    assert len(told.splitlines()) == 1
    assert "listens on loopback only" in run_with(tmp_path, access={"auth": "none"}, host="0.0.0.0")  # noqa: S104
    wrong = {"tls_certificate": str(certificate), "tls_key": str(certificate)}
    assert "must be a certificate and its key" in run_with(tmp_path, access={"auth": "none"}, **wrong)
    told = run_with(tmp_path, access={"auth": "none"}, audit_file=str(tmp_path / "none" / "audit.jsonl"))
    assert "audit_file: it must be a file that can be written" in told
    assert key.exists()
