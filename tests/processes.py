"""Finds the processes of a test's own Ray, to kill them."""

import os
import random
import signal
from pathlib import Path


def _stat(pid: str) -> tuple[str, int]:
    """Return name and parent of a process."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        return name, int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return "", 0


def ray_workers(*names: str) -> list[int]:
    """Return the worker processes of this process's own Ray that bear one of the names."""
    found = {pid: _stat(pid) for pid in os.listdir("/proc") if pid.isdigit()}  # noqa: PTH208
    raylets = {int(pid) for pid, (name, parent) in found.items() if name.endswith("raylet") and parent == os.getpid()}
    own = [(int(pid), name) for pid, (name, parent) in found.items() if parent in raylets]
    return [pid for pid, name in own if name.split(".")[0] in names]


def kill_worker(rng: random.Random, *names: str) -> bool:
    """Kill one of these workers; return False if there was none, or it ended by itself in the meantime."""
    workers = ray_workers(*names)
    if not workers:
        return False
    try:
        os.kill(rng.choice(workers), signal.SIGKILL)
    except ProcessLookupError:  # Ray ends workers that have nothing to do
        return False
    return True
