"""A server on a cluster of others: it changes nothing of theirs, whether it is refused, starts, or is told to stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.infer.tiny import model_in
from tests.ports import free_port
from tests.serving.conftest import Served, small_vocabulary

IMPORTS = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/platform"}
"""Serve's replicas are made by its own processes, so they import what those can."""
OTHERS = """
import ray, sys, time
from ray import serve
ray.init(address="local", num_cpus=1)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Theirs:
    def __call__(self, request):
        return "theirs"

serve.run(Theirs.bind(), name="theirs", route_prefix="/theirs")
print("ADDRESS", ray.get_runtime_context().gcs_address, flush=True)
time.sleep(3600)
"""


def begin(folder: Path, address: str, **options: object) -> "subprocess.Popen[str]":
    """Begin to serve a tiny model on the cluster of an address."""
    config = {"access": {"auth": "none"}, "ingress_cpus": 0, **options}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-W", "ignore", "-m", "serving.run", "--config", str(folder / "serve.yaml")]
    environment = {**os.environ, "RAY_ADDRESS": address} | IMPORTS
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
    )


def test_serve_with_another_address_is_left_alone(served: Served, tmp_path: Path) -> None:
    import ray

    models = {"default": {"uri": served.config.models["default"].uri, "num_cpus": 0.1}}
    server = begin(tmp_path, ray.get_runtime_context().gcs_address, models=models, port=free_port())
    _, told = server.communicate(timeout=120)
    assert server.returncode == 2, told
    assert f"the configured address and TLS; found port {served.config.port}" in told.splitlines()[-1]
    with served.client() as client:
        assert client.get("/readyz").status_code == 200


@pytest.fixture
def others(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Start a cluster of one CPU with an application; give its address, and that of the application."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | IMPORTS
    command = [sys.executable, "-W", "ignore", "-c", OTHERS, str(port)]
    with (tmp_path / "others").open("w") as out:
        cluster = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(1200):
            lines = [line for line in (tmp_path / "others").read_text().splitlines() if line.startswith("ADDRESS")]
            if lines:
                break
            assert cluster.poll() is None, (tmp_path / "others").read_text()
            time.sleep(0.1)
        yield lines[0].split()[1], f"http://127.0.0.1:{port}"
    finally:
        cluster.send_signal(signal.SIGINT)
        cluster.wait(timeout=60)


@pytest.mark.own_ray
@pytest.mark.chaos
def test_what_others_serve_stays(others: tuple[str, str], tmp_path: Path) -> None:
    """Told to stop while it waits for CPUs that nobody has; and again when it has served."""
    address, url = others
    model = {"uri": model_in(tmp_path, small_vocabulary()), "threads": 1}
    for cpus, ready in ((8, False), (0.1, True)):
        port = int(url.rpartition(":")[2])
        server = begin(tmp_path, address, models={"default": {**model, "num_cpus": cpus}}, port=port)
        assert server.stdout is not None
        if ready:
            assert "serves default" in server.stdout.readline()
            assert httpx2.get(f"{url}/readyz", timeout=30).json()["status"] == "ok"
        else:
            time.sleep(30)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        told = server.communicate(timeout=60)[1]
        assert server.returncode == 0, told
        assert time.monotonic() - began < 30
        assert "cut off" not in told
        assert httpx2.get(f"{url}/theirs", timeout=30).text == "theirs"
