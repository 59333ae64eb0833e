"""The vocabulary job on two CPUs against tokenization of the same file in the same run, and how exact its medians are.

Ray's start is left out. The cells' depths differ as real ones' do, so that a gene's values fill many buckets.
"""

import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import anndata
import numpy as np
import ray
from numpy.typing import NDArray

from cellray.data.medians.build import MedianConfig, build_vocabulary
from cellray.data.medians.gene_tables import GeneTables
from cellray.data.medians.measure import _sketch_unit
from cellray.data.medians.sketch import ACCURACY
from cellray.data.medians.sources import ReadOptions, open_sources, plan_sources
from cellray.data.session import ensure_ray
from cellray.vocabulary import GeneVocabulary
from tests.benchmarks.tokenization import (
    CELLS,
    CPUS,
    PER_CELL,
    SHARD,
    seconds,
    synthetic_vocabulary,
    tokenize,
    write_cells,
)
from tests.conftest import SHARED

ROUNDS = 3


def write_cells_of_all_depths(path: Path, compression: str | None, cells: int = CELLS) -> None:
    """Write the cells of the tokenization benchmark with counts scaled by a depth of each cell."""
    x = write_cells(path, None, cells)
    depth = np.repeat(np.random.default_rng(2).lognormal(0, 0.6, cells), PER_CELL)
    x.data = np.ceil(x.data * depth).astype(np.float32)
    adata = anndata.read_h5ad(path, backed="r")
    anndata.AnnData(x, obs=adata.obs, var=adata.var).write_h5ad(path.with_suffix(".deep.h5ad"), compression=compression)
    adata.file.close()
    path.with_suffix(".deep.h5ad").replace(path)


def errors(sketched: GeneVocabulary, exact: GeneVocabulary) -> NDArray[np.float64]:
    """Return the relative error of each gene's median."""
    assert list(sketched.genes) == list(exact.genes)
    return np.array([abs(sketched.medians[gene] / median - 1) for gene, median in exact.medians.items()])


def accuracy(name: str, path: Path) -> None:
    """Print the errors of the sketch on one file."""
    source = (str(path),)
    found = errors(
        build_vocabulary(MedianConfig(source=source)), build_vocabulary(MedianConfig(source=source, exact=True))
    )
    print(
        f"sketched medians of {name}, {len(found):,} genes: largest error {found.max():.3%}, mean {found.mean():.3%} "
        f"(promised {ACCURACY:.2%}, target 0.5 %)"
    )


def peak_of_a_worker(path: Path) -> int:
    """Return the most memory a process holds that sketches a whole file as one unit, in MiB."""
    options = ReadOptions("X", None, None)
    plan = plan_sources(open_sources([str(path)], options, GeneTables())[0])
    unit = tuple(piece for unit in plan.units(1) for piece in unit)
    _sketch_unit(unit, options, len(plan.genes), [0], *plan.columns)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10


def main() -> None:
    """Measure both kinds of file, then the errors."""
    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ensure_ray()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_vocabulary().save(str(folder / "v.json"))

        def measure(path: Path) -> None:
            build_vocabulary(MedianConfig(source=(str(path),)))

        write_cells_of_all_depths(folder / "warm.h5ad", "gzip", cells=4 * SHARD)
        tokenize(folder / "warm.h5ad", folder, "warm")
        measure(folder / "warm.h5ad")
        for compression in ("gzip", None):
            path = folder / f"{compression}.h5ad"
            write_cells_of_all_depths(path, compression)
            pairs = [
                (seconds(lambda p=path: measure(p)), seconds(lambda p=path, i=i: tokenize(p, folder, f"{p.stem}{i}")))
                for i in range(ROUNDS)
            ]
            ours = statistics.median(a for a, _ in pairs)
            print(
                f"vocabulary of {CELLS:,} cells of {PER_CELL:,} genes, {compression or 'uncompressed'}: "
                f"{CELLS / ours:,.0f} cells/s, {ours * CPUS / (CELLS * PER_CELL) * 1e9:.0f} ns a value and core, "
                f"{statistics.median(a / b for a, b in pairs):.2f} x the time of tokenization (target 2 x)"
            )
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            peak = process.submit(peak_of_a_worker, folder / "None.h5ad").result()
        print(f"a worker that sketches a unit of {CELLS:,} cells holds {peak:,} MiB at most")
        accuracy("the synthetic cells", folder / "None.h5ad")
        for real in sorted((SHARED / "data").glob("*.h5ad")):
            accuracy(real.name, real)
    ray.shutdown()


if __name__ == "__main__":
    main()
