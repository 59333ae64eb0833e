"""What a server may be told, and what it says of the rest; its command line from start to Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import yaml
from pydantic import ValidationError

from cellray.errors import InputError
from serving.config import ServingConfig, is_loopback, read_config
from tests.conftest import REPOSITORY
from tests.infer.tiny import model_in
from tests.ports import free_port
from tests.serving.conftest import small_vocabulary

MODELS = {"default": {"uri": "somewhere"}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"access": {"auth": "none"}, "host": "0.0.0.0"}, "loopback only"),  # noqa: S104
        ({"access": {"auth": "password"}}, "'keys' or 'none'"),
        ({"access": {"auth": "none"}, "tls_key": "k"}, "go together"),
        ({"models": {}}, "at least 1"),
        ({"models": {"a b": {"uri": "x"}}}, "letters, digits"),
        ({"models": {"a": {"uri": "x", "min_replicas": 2}}}, "max_replicas"),
        ({"models": {"a": {"uri": "x", "gpu": 1}}}, "Extra inputs"),
        ({"drain_s": 30}, r"drain_s \(30\) must not be below limits.request_timeout_s \(120\)"),
    ],
)
def test_wrong_options_are_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServingConfig.model_validate({"models": MODELS, "access": {"auth": "none"}} | change)


def test_addresses_of_this_machine() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.3.2.1", "::1", "0.0.0.0", "example.org", "")] == [  # noqa: S104
        *(True, True, True),
        *(False, False, False),
    ]


def test_the_example_is_for_serve_deploy_too() -> None:
    from ray.serve.schema import ServeDeploySchema

    path = REPOSITORY / "serving" / "serve.yaml"
    ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    config = read_config(path)
    assert (config.host, config.port, config.access.auth) == ("127.0.0.1", 8000, "none")
    assert list(config.models) == ["default"]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("models: {default: {url: x}}")
    with pytest.raises(InputError, match=r"models\.default\.uri: Field required.*models\.default\.url: .*known: uri, "):
        read_config(tmp_path / "bad.yaml")
    with pytest.raises(InputError, match="names a YAML file"):
        read_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("applications", "found"),
    [
        ("[]", "0 of them"),
        ("[{args: {}}, {args: {}}]", "2 of them"),
        ("[{name: a}]", "one without `args`"),
        ("[{args: [1]}]", "one without `args`"),
        ("5", "int"),
        ("[5]", "1 of them"),
    ],
)
def test_a_deployment_file_has_one_application(tmp_path: Path, applications: str, found: str) -> None:
    (tmp_path / "serve.yaml").write_text(f"applications: {applications}")
    with pytest.raises(InputError, match="lists one application") as raised:
        read_config(tmp_path / "serve.yaml")
    assert raised.value.found == found


def test_building_does_no_work() -> None:
    """Neither importing nor building an application opens a model."""
    from serving.app import build

    config = ServingConfig.model_validate({"models": MODELS, "access": {"auth": "none"}})
    assert build(config)._bound_deployment.name == "ingress"


@pytest.mark.own_ray
def test_the_command_line_serves_until_it_is_stopped(tmp_path: Path) -> None:
    port = free_port()
    options = {
        "models": {"default": {"uri": model_in(tmp_path, small_vocabulary()), "num_cpus": 0.1, "threads": 1}},
        "access": {"auth": "none"},
        "limits": {"bodies_at_once": 1, "body_s": 300},
        "port": port,
        "ingress_cpus": 0,
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(options))
    command = [sys.executable, "-W", "ignore", "-m", "serving.run", "--config", str(tmp_path / "serve.yaml")]
    environment = {**os.environ, "RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        server = subprocess.Popen(
            command, stdout=out, stderr=err, cwd=REPOSITORY, env=environment, start_new_session=True
        )
    try:
        for _ in range(1800):
            assert server.poll() is None, (tmp_path / "err").read_text()
            if "curl" in (tmp_path / "out").read_text():
                break
            time.sleep(0.1)
        assert f"http://127.0.0.1:{port}" in (tmp_path / "out").read_text()
        url, cells = f"http://127.0.0.1:{port}", [{"id": "a", "genes": ["ENSG00000000003"], "counts": [2]}]
        answer = httpx2.post(f"{url}/v1/embeddings", json={"cells": cells}, timeout=30)
        assert answer.status_code == 200, answer.text
        late = answered_while_stopping(server.pid, tmp_path / "err", url, cells)
        assert late.json()["embeddings"] == answer.json()["embeddings"]
        assert server.wait(timeout=180) == 0
        told = (tmp_path / "err").read_text()
        assert "1 request under way may end" in told
        assert told.startswith("stopping: ")
        assert told.endswith("stopped\n")
        for alarming in ("ServeController", "will not be applied", "LongPollClient"):
            assert alarming not in told + (tmp_path / "out").read_text()
        assert "cut off" not in told
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def answered_while_stopping(process: int, told: Path, url: str, cells: object) -> httpx2.Response:
    """Send the first half of a request, Ctrl-C, and the rest once the server refuses others; return the answer."""
    refused: list[httpx2.Response] = []
    body = json.dumps({"cells": cells}).encode()

    def halves() -> Iterator[bytes]:
        yield body[:20]
        time.sleep(2)  # so that none of those below takes the place of this one
        wait_for(lambda: httpx2.post(f"{url}/v1/embeddings", content=b"", timeout=30).status_code == 429)
        os.killpg(process, signal.SIGINT)  # as a terminal does: Ray's processes, too
        wait_for(lambda: "under way may end" in told.read_text())
        refused.append(httpx2.get(f"{url}/readyz", timeout=30))
        refused.append(httpx2.post(f"{url}/v1/embeddings", content=body, timeout=30))
        yield body[20:]

    def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, told.read_text()
            time.sleep(0.1)

    headers = {"content-type": "application/json"}
    answer = httpx2.post(f"{url}/v1/embeddings", content=halves(), headers=headers, timeout=150)
    assert answer.status_code == 200, answer.text
    ready, other = refused
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (other.status_code, other.json()["error"]["code"]) == (503, "draining")
    assert int(other.headers["retry-after"]) > 0
    return answer


@pytest.mark.own_ray
def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({"models": MODELS, "access": {"auth": "none"}}))
    command = [sys.executable, "-m", "serving.run", "--config", str(tmp_path / "serve.yaml")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "somewhere" in ended.stderr


def test_ctrl_c_while_models_are_looked_at_is_no_traceback(tmp_path: Path) -> None:
    """Looking takes until then: the model's configuration is a pipe into which nobody writes."""
    (tmp_path / "model.safetensors").touch()
    os.mkfifo(tmp_path / "config.json")
    models = {"default": {"uri": str(tmp_path), "num_cpus": 0.1}}
    config = {"models": models, "access": {"auth": "none"}, "ingress_cpus": 0}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-u", "-m", "serving.run", "--config", str(tmp_path / "serve.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        assert server.stdout.readline() == "looking at the models ...\n"
        server.send_signal(signal.SIGINT)
        assert server.stderr.read() == "stopped\n"
        assert server.wait(timeout=120) == 0
