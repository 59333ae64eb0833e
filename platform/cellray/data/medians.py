"""Nonzero medians of a corpus of counts: the one corpus-wide statistic that rank value encoding needs.

Exact: every nonzero value is held in memory, 28 bytes each at the peak, so there is a limit to the size of the corpus.
"""

import logging
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from cellray.config import JobConfig
from cellray.data import gene_ids
from cellray.data.cells import filter_pass, total_counts
from cellray.data.checks import check_block, sum_duplicates
from cellray.data.locate import expand_sources
from cellray.data.session import ensure_ray, plain_errors
from cellray.data.source import CountSource, open_source, require_obs
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary, IdType

logger = logging.getLogger(__name__)

MAX_VALUES = 150_000_000
"""Most nonzero values held at once (about 4 GB while they are sorted)."""
TARGET_SUM = 10_000.0
"""Total to which each cell's counts are scaled."""
_READ_CELLS = 4096


class MedianConfig(JobConfig):
    """How to measure nonzero medians of a corpus of counts."""

    source: tuple[str, ...] = Field(
        (), description="files of raw counts, folders, globs or lists (.txt) of them, local or s3://, comma-separated"
    )
    matrix: str = Field("X", description="where the raw counts are: X, raw or layers/NAME")
    gene_ids: str | None = Field(
        None, description="var column with the gene ids, or index; default: ensembl_id if there is one, else index"
    )
    n_counts_column: str | None = Field(
        None, description="obs column with each cell's total count; default: the sum over all columns of the matrix"
    )
    generation: Literal["v1", "v2"] = Field(
        "v1", description="special tokens and input size: v1 (<pad>, <mask>; 2,048) or v2 (and <cls>, <eos>; 4,096)"
    )
    input_size: int | None = Field(None, gt=4, description="tokens of a row, default: the generation's [tokens]")


@plain_errors()
def build_vocabulary(config: MedianConfig) -> GeneVocabulary:
    """Measure the nonzero median of every gene over all sources and give each a token.

    The median of x / n_counts * 10,000 over the cells with x > 0 (Theodoris et al. 2023, Methods); columns of one gene
    are summed first; genes never seen get no token. Cells with `filter_pass` other than 1 are left out.

    Raises
    ------
    InputError
        A source breaks a rule, the sources use different kinds of gene ids, or there are more values than fit.
    """
    ensure_ray()
    uris = expand_sources(config.source)
    names: dict[str, int] = {}
    kinds: dict[str, IdType] = {}
    columns: list[NDArray[np.int32]] = []
    for uri in uris:
        with open_source(uri, config.matrix) as source:
            if config.n_counts_column:
                require_obs(source, [config.n_counts_column])
            found, kind = _gene_names(source, config.gene_ids)
            kinds[uri] = kind
            columns.append(np.array([names.setdefault(n, len(names)) if n else -1 for n in found], np.int32))
    if len(set(kinds.values())) > 1:
        raise InputError(
            "--source", "all sources must use one kind of gene id", str(kinds), "Use --gene-ids or map the ids."
        )
    gene, value = _collect(uris, columns, len(names), config)
    medians = dict(zip(names, grouped_median(gene, value, len(names)), strict=True))
    seen = {name: median for name, median in medians.items() if not np.isnan(median)}
    if not seen:
        raise InputError(", ".join(uris), "some count must be above zero", "none", "Check the files.")
    return GeneVocabulary.from_medians(seen, config.generation, kinds[uris[0]], config.input_size)


def grouped_median(group: NDArray[np.integer], value: NDArray[np.floating], n_groups: int) -> NDArray[np.float64]:
    """Return the median of the values of each group, NaN for an empty one. Shape (n_groups,)."""
    order = np.lexsort((value, group))
    size = np.bincount(group, minlength=n_groups)
    first = np.cumsum(size) - size
    medians = np.full(n_groups, np.nan)
    some = size > 0
    low, high = first[some] + (size[some] - 1) // 2, first[some] + size[some] // 2
    medians[some] = (value[order[low]].astype(np.float64) + value[order[high]]) / 2
    return medians


def _gene_names(source: CountSource, column: str | None) -> tuple[list[str], IdType]:
    """Return each column's gene id ('' where it has none of the file's kind) and that kind."""
    names, _ = gene_ids.column_names(source, column)
    ensembl = [gene_ids.is_ensembl(name) for name in names]
    if 2 * sum(ensembl) >= sum(bool(name) for name in names):
        left_out = len(names) - sum(ensembl)
        if left_out:
            logger.info("%s: %s columns without an Ensembl ID are left out", source.uri, f"{left_out:,}")
        return [gene_ids.normalise_gene_id(n) if e else "" for n, e in zip(names, ensembl, strict=True)], "ensembl"
    logger.info("%s: gene ids are symbols; the vocabulary will hold symbols", source.uri)
    return [name.strip() for name in names], "symbol"


def _collect(
    uris: list[str], columns: list[NDArray[np.int32]], n_genes: int, config: MedianConfig
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Read all sources on Ray and gather (gene, scaled count) of every nonzero value."""
    import ray

    rows = [{"index": i} for i in range(len(uris))]

    def read(batch: dict[str, NDArray[np.int64]]) -> Iterator[pa.Table]:
        for i in batch["index"]:
            yield from _scaled_counts(uris[i], columns[i], n_genes, config)

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(read)
    genes: list[NDArray[np.int32]] = []
    values: list[NDArray[np.float64]] = []
    total = 0
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        total += table.num_rows
        if total > MAX_VALUES:
            raise InputError(
                "--source",
                f"exact medians hold at most {MAX_VALUES:,} nonzero values",
                f"more after {len(values)} blocks",
                "Measure them on a random sample of the cells.",
            )
        genes.append(table["gene"].to_numpy())
        values.append(table["value"].to_numpy())
        logger.info("medians: %s nonzero values read", f"{total:,}")
    if not values:
        return np.empty(0, np.int32), np.empty(0)
    return np.concatenate(genes), np.concatenate(values)


def _scaled_counts(uri: str, columns: NDArray[np.int32], n_genes: int, config: MedianConfig) -> Iterator[pa.Table]:
    """Yield gene index and scaled count of the nonzero values of one source."""
    with open_source(uri, config.matrix) as source:
        for block in source.blocks(0, source.n_cells, _READ_CELLS):
            start, stop = block.start, block.start + block.n_cells
            sums = check_block(block, source).n_counts
            n_counts = total_counts(source, config.n_counts_column, start, stop, sums)
            summed = sum_duplicates(block, columns, n_genes)
            cell = np.repeat(np.arange(summed.n_cells), np.diff(summed.indptr))
            kept = (summed.counts > 0) & filter_pass(source, start, stop)[cell]
            value = summed.counts[kept] / n_counts[cell[kept]] * TARGET_SUM
            yield pa.table({"gene": summed.columns[kept].astype(np.int32), "value": value})
