"""Seconds that `import cellray` takes in a fresh interpreter."""

import statistics
import subprocess
import sys

CODE = "import time; began = time.perf_counter(); import cellray; print(time.perf_counter() - began)"


def main() -> None:
    """Measure five fresh interpreters."""
    seconds = [float(subprocess.check_output([sys.executable, "-c", CODE])) for _ in range(5)]
    print(f"import cellray: {statistics.median(seconds):.4f} s (target 0.3 s)")


if __name__ == "__main__":
    main()
