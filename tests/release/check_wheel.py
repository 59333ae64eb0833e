"""Installs the wheel into a fresh environment and uses it there: `python tests/release/check_wheel.py WHEEL VENV`.

Needs the standard library alone. Nothing of the checkout is on the path of what is run; versions are those of
`constraints.txt`. Says how long each step took; the first failing step ends it.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "library_api.py"


def main(wheel: str, venv: str) -> None:
    """Make the environment anew, install, run."""
    place, python = Path(venv).absolute(), str(Path(venv).absolute() / "bin" / "python")
    shutil.rmtree(place, ignore_errors=True)
    constraints = ["--constraint", str(CHECKOUT / "constraints.txt")]
    install = [python, "-m", "pip", "install", "--quiet"]
    with tempfile.TemporaryDirectory(prefix="cellray-wheel-") as name:
        shutil.copy(PROGRAM, name)
        for what, command in (
            ("a fresh environment", [sys.executable, "-m", "venv", str(place)]),
            ("the wheel and what it needs, installed", [*install, *constraints, str(Path(wheel).absolute())]),
            ("no broken requirements", [python, "-m", "pip", "check"]),
            ("the library, used", [python, "-I", "-W", "ignore", str(Path(name) / PROGRAM.name)]),
        ):
            began = time.monotonic()
            subprocess.run(command, check=True, cwd=name)
            print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/release/check_wheel.py WHEEL VENV")
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed with status {error.returncode}: {' '.join(map(str, error.cmd))}")
