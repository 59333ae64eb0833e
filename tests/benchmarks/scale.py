"""Tokenization as it grows: peak memory of a worker for 10,000 and 200,000 cells; two workers against one."""

import os
import shutil
import statistics
import tempfile
from pathlib import Path

import ray

from cellray.data.session import ensure_ray
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from tests.benchmarks.tokenization import CPUS, seconds, synthetic_vocabulary, write_cells

SMALL, LARGE, PER_CELL, ROUNDS = 10_000, 200_000, 1_000, 3


def peak_of_workers() -> float:
    """Return the largest peak of resident memory among Ray's workers [MB]."""
    peaks = []
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                peaks.append(int(status["VmHWM"].split()[0]) / 1024)
        except (OSError, KeyError):
            continue
    return max(peaks)


def main() -> None:
    """Measure both."""
    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ensure_ray()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_vocabulary().save(str(folder / "v.json"))

        def tokenize(path: Path, workers: int) -> None:
            shutil.rmtree(folder / "out", ignore_errors=True)
            config = TokenizeConfig(
                source=(str(path),), vocabulary=str(folder / "v.json"), output=str(folder / "out"), workers=workers
            )
            tokenize_corpus(config)

        peaks = []
        for cells in (SMALL, LARGE):
            path = folder / f"{cells}.h5ad"
            write_cells(path, None, cells=cells, per_cell=PER_CELL)
            tokenize(path, CPUS)
            peaks.append(peak_of_workers())
        print(f"peak memory of a worker: {peaks[0]:,.0f} MB at {SMALL:,} cells, {peaks[1]:,.0f} MB at {LARGE:,} cells")
        rounds = [[seconds(lambda w=w: tokenize(path, w)) for w in (1, 2)] for _ in range(ROUNDS)]
        one, two = (statistics.median(times) for times in zip(*rounds, strict=True))
        print(
            f"tokenize {LARGE:,} cells of {PER_CELL:,} genes, uncompressed: "
            f"{LARGE / one:,.0f} cells/s with one worker, {LARGE / two:,.0f} with two: {one / two:.2f} x (target 1.6 x)"
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
