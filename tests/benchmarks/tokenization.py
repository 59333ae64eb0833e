"""Files to committed shards on two CPUs, Ray's start left out: against one process with everything in memory.

The straightforward way reads with anndata, encodes a scipy row at a time and writes one parquet file. Beside it stand
the time of only reading and inflating the same bytes in as many processes, and the kernel's own rate.
"""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from scipy import sparse

from cellray.data.session import ensure_ray
from cellray.data.source import open_source
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.rank_value import ColumnGenes, encode_rows
from cellray.vocabulary import GeneVocabulary
from tests.benchmarks.encoding import row_loop

CELLS, GENES, PER_CELL, CPUS, SHARD = 10_000, 25_000, 3_000, 2, 1_250


def write_cells(path: Path, compression: str | None, cells: int = CELLS) -> sparse.csr_matrix:
    """Write synthetic cells: genes drawn by level, counts of a skewed distribution."""
    rng = np.random.default_rng(0)
    level = rng.lognormal(0, 1, GENES)
    pattern = [np.sort(rng.choice(GENES, PER_CELL, replace=False, p=level / level.sum())) for _ in range(100)]
    columns = np.concatenate([pattern[i % 100] for i in range(cells)]).astype(np.int32)
    counts = rng.geometric(0.4, cells * PER_CELL).astype(np.float32)
    x = sparse.csr_matrix((counts, columns, np.arange(cells + 1) * PER_CELL), shape=(cells, GENES))
    names = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(GENES)])
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(cells)])
    anndata.AnnData(x, obs=obs, var=names).write_h5ad(path, compression=compression)
    return x


def straightforward(path: Path, vocabulary: GeneVocabulary, output: Path) -> None:
    """Do it in one process."""
    adata = anndata.read_h5ad(path)
    tokens = np.array([vocabulary.genes[gene] for gene in adata.var_names], np.int32)
    rows = row_loop(adata.X, ColumnGenes(tokens, vocabulary.median_of_token[tokens]))
    pq.write_table(pa.table({"input_ids": rows, "cell_id": adata.obs_names}), output)


def read_range(path: Path, start: int, stop: int) -> int:
    """Read and inflate a range of cells, no more."""
    with open_source(str(path)) as source:
        return sum(block.n_cells for block in source.blocks(start, stop, 1024))


def seconds(work: object) -> float:
    """Time a call."""
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def main() -> None:
    """Measure both kinds of file."""
    medians = np.random.default_rng(1).lognormal(0, 1, GENES)
    vocabulary = GeneVocabulary.from_medians(
        {f"ENSG{i:011d}": float(m) for i, m in enumerate(medians)}, "v1", "ensembl"
    )
    ray.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ensure_ray()
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(CPUS) as processes:
        folder = Path(name)
        vocabulary.save(str(folder / "v.json"))

        def ours(path: Path, output: str) -> None:
            config = TokenizeConfig(
                source=(str(path),),
                vocabulary=str(folder / "v.json"),
                output=str(folder / output),
                cells_per_shard=SHARD,
            )
            tokenize_corpus(config)

        def only_reading(path: Path) -> None:
            ranges = range(0, CELLS, SHARD)
            list(processes.map(read_range, [path] * len(ranges), ranges, [min(s + SHARD, CELLS) for s in ranges]))

        write_cells(folder / "warm.h5ad", "gzip", cells=4 * SHARD)
        ours(folder / "warm.h5ad", "warm")
        for compression in ("gzip", None):
            path = folder / f"{compression}.h5ad"
            x = write_cells(path, compression)
            genes = ColumnGenes(np.arange(2, GENES + 2, dtype=np.int32), medians)
            only_reading(path)
            read = seconds(lambda p=path: only_reading(p))
            own = seconds(lambda p=path, c=compression: ours(p, f"corpus-{c}"))
            base = seconds(lambda p=path: straightforward(p, vocabulary, folder / "base.parquet"))
            kernel = seconds(lambda m=x, g=genes: encode_rows(m.data, m.indices, m.indptr, g, vocabulary.layout()))
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
