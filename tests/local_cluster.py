"""A Ray cluster of several nodes on this machine, as `ray start` makes one, with token authentication."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import REPOSITORY
from tests.ports import free_port

BIN = Path(sys.executable).parent
_START_S = 180.0
# The agent's own default is one fixed port within the range that clients' sockets take theirs from.
_NODE = ("--object-store-memory", "200000000", "--dashboard-agent-listen-port", "0")


class LocalCluster:
    """A head without CPUs for work, and nodes of one CPU each; all processes end with it.

    Parameters
    ----------
    folder
        For logs and the token.
    nodes
        How many nodes do work.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{BIN}{os.pathsep}{own['PATH']}"
        # a lost node is known after seconds, not half a minute: connections to it are refused
        ray = {"RAY_AUTH_MODE": "token", "RAY_health_check_period_ms": "1000"}
        self._bare = own | ray | {"PATH": path, "HOME": str(folder)}
        self.environment = self._bare | {"RAY_AUTH_TOKEN_PATH": str(token)}
        self._folder, self._port, self._dashboard = folder, free_port(), free_port()
        self.dashboard = f"http://127.0.0.1:{self._dashboard}"
        self._nodes = nodes
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _begin(self) -> None:
        ports = ("--port", str(self._port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(self._dashboard))
        self._start("--head", *ports, "--num-cpus", "0")
        self._wait_for_jobs()
        for _ in range(self._nodes):
            self._start("--address", f"127.0.0.1:{self._port}", "--num-cpus", "1")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            self._kill(process)
            process.wait()

    def _start(self, *options: str) -> None:
        """Start a node and wait for it: two that start at one moment may choose the same socket."""
        path = self._folder / f"node{len(self._processes)}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [BIN / "ray", "start", "--block", "--disable-usage-stats", *_NODE, *options],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        until = time.monotonic() + _START_S
        while "Ray runtime started" not in path.read_text():
            assert process.poll() is None, path.read_text()
            assert time.monotonic() < until, path.read_text()
            time.sleep(0.1)

    def _wait_for_jobs(self) -> None:
        """Wait until the head takes jobs: some seconds after it answers."""
        until = time.monotonic() + _START_S
        while (job := self.ray("job", "submit", "--address", self.dashboard, "--", "true")).returncode:
            said = f"{job.stdout}{job.stderr}\n{(self._folder / 'node0.log').read_text()}"
            assert time.monotonic() < until, said
            assert self._processes[0].poll() is None, said

    def kill_node(self) -> None:
        """Kill all processes of the last node at once, as a machine that is lost."""
        self._kill(self._processes[-1])
        self._processes[-1].wait()

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def ray(self, *words: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of `ray`, with or without the token."""
        environment = self.environment if token else self._bare
        return subprocess.run(
            [BIN / "ray", *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )

    def submit(self, *command: str) -> subprocess.Popen[str]:
        """Submit a job from the project's folder, as a user would."""
        return subprocess.Popen(
            self.submission(*command),
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submission(self, *command: str) -> Sequence[str | Path]:
        """Return the command line that submits a job."""
        return [BIN / "ray", "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--", *command]
