"""Files to committed shards on two CPUs, Ray's start left out: against one process with everything in memory.

The straightforward way reads with anndata, encodes a scipy row at a time and saves a Hugging Face dataset. Beside it
stand the time in which as many processes only read and inflate the same bytes with h5py, and the kernel's own rate.
Each is the median of rounds in turns.
"""

import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import anndata
import datasets
import h5py
import numpy as np
import pandas as pd
import ray
from scipy import sparse

from cellray.data.session import ensure_ray
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.rank_value import ColumnGenes, encode_rows
from cellray.vocabulary import GeneVocabulary
from tests.benchmarks.encoding import row_loop

CELLS, GENES, PER_CELL, CPUS, SHARD, ROUNDS = 10_000, 25_000, 3_000, 2, 1_250, 3


def write_cells(path: Path, compression: str | None, cells: int = CELLS, per_cell: int = PER_CELL) -> sparse.csr_matrix:
    """Write synthetic cells: genes drawn by level, counts of a skewed distribution."""
    rng = np.random.default_rng(0)
    level = rng.lognormal(0, 1, GENES)
    pattern = [np.sort(rng.choice(GENES, per_cell, replace=False, p=level / level.sum())) for _ in range(100)]
    columns = np.concatenate([pattern[i % 100] for i in range(cells)]).astype(np.int32)
    counts = rng.geometric(0.4, cells * per_cell).astype(np.float32)
    x = sparse.csr_matrix((counts, columns, np.arange(cells + 1) * per_cell), shape=(cells, GENES))
    names = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(GENES)])
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(cells)])
    anndata.AnnData(x, obs=obs, var=names).write_h5ad(path, compression=compression)
    return x


def synthetic_vocabulary() -> GeneVocabulary:
    """Return a vocabulary of all the genes that `write_cells` draws from."""
    medians = np.random.default_rng(1).lognormal(0, 1, GENES)
    return GeneVocabulary.from_medians({f"ENSG{i:011d}": float(m) for i, m in enumerate(medians)}, "v1", "ensembl")


def tokenize(path: Path, folder: Path, output: str) -> None:
    """Run the stage on one file, with the vocabulary `v.json` of a folder, into that folder."""
    config = TokenizeConfig(
        source=(str(path),),
        vocabulary=str(folder / "v.json"),
        output=str(folder / output),
        cells_per_shard=SHARD,
    )
    tokenize_corpus(config)


def straightforward(path: Path, vocabulary: GeneVocabulary, output: Path) -> None:
    """Do it in one process."""
    adata = anndata.read_h5ad(path)
    tokens = np.array([vocabulary.genes[gene] for gene in adata.var_names], np.int32)
    rows = row_loop(adata.X, ColumnGenes(tokens, vocabulary.median_of_token[tokens]))
    cells = {"input_ids": rows, "length": [len(row) for row in rows], "cell_id": list(adata.obs_names)}
    datasets.Dataset.from_dict(cells).save_to_disk(output)


def read_range(path: Path, start: int, stop: int) -> int:
    """Read and inflate a range of cells, no more; return the number of values."""
    with h5py.File(path) as file:
        x, values = file["X"], 0
        for first in range(start, stop, 1024):
            a, b = x["indptr"][first], x["indptr"][min(first + 1024, stop)]
            values += len(x["data"][a:b]) + len(x["indices"][a:b])
        return values


def seconds(work: object) -> float:
    """Time a call."""
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def main() -> None:
    """Measure both kinds of file."""
    vocabulary = synthetic_vocabulary()
    medians = vocabulary.median_of_token[2:]
    datasets.disable_progress_bars()
    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ensure_ray()
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(CPUS) as processes:
        folder = Path(name)
        vocabulary.save(str(folder / "v.json"))

        def only_reading(path: Path) -> None:
            ranges = range(0, CELLS, SHARD)
            list(processes.map(read_range, [path] * len(ranges), ranges, [min(s + SHARD, CELLS) for s in ranges]))

        write_cells(folder / "warm.h5ad", "gzip", cells=4 * SHARD)
        tokenize(folder / "warm.h5ad", folder, "warm")
        for compression in ("gzip", None):
            path = folder / f"{compression}.h5ad"
            x = write_cells(path, compression)
            genes = ColumnGenes(np.arange(2, GENES + 2, dtype=np.int32), medians)
            only_reading(path)
            ways = (
                lambda i, p=path, c=compression: tokenize(p, folder, f"corpus-{c}-{i}"),
                lambda _, p=path: only_reading(p),
                lambda _, m=x, g=genes: encode_rows(m.data, m.indices, m.indptr, g, vocabulary.layout()),
                lambda i, p=path: straightforward(p, vocabulary, folder / f"base-{i}"),
            )
            rounds = [[seconds(lambda w=way, i=i: w(i)) for way in ways] for i in range(ROUNDS)]
            own, read, kernel, base = (statistics.median(times) for times in zip(*rounds, strict=True))
            print(
                f"tokenize {CELLS:,} cells of {PER_CELL:,} genes, {compression or 'uncompressed'}: "
                f"{CELLS / own:,.0f} cells/s, "
                f"{base / own:.1f} x the straightforward way ({CELLS / base:,.0f} cells/s; target 10 x), "
                f"{own / read:.2f} x the time of only reading (target 1.6 x for gzip), "
                f"{(kernel / CPUS) / own:.2f} of the kernel's rate on {CPUS} cores (target 0.5 uncompressed)"
            )
    ray.shutdown()


if __name__ == "__main__":
    main()
