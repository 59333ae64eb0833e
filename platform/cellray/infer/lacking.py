"""Which chosen cells lack which listed gene: read from the token rows, after a screen of listed genes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray import schema
from cellray.data.collate import TokenRows
from cellray.data.corpora.corpus import Corpus
from cellray.infer.design import Design
from cellray.perturbation import NO_TOKEN
from cellray.schema import PartRecord
from cellray.shift_schema import Lacking

MOST_NAMED = 100
"""Cells whose names go into the manifest."""
_AT_ONCE, _CELLS = 4, 1024


def find_lacking(corpus: Corpus, design: Design, chosen_n: NDArray[np.bool_]) -> Lacking | None:
    """Look for listed genes (and the anchor's) in the rows of the chosen cells; None for a design that lists none.

    Parameters
    ----------
    chosen_n
        Which cells of the corpus are perturbed.
    """
    tokens_g = np.unique([*design.token_pk[design.token_pk != NO_TOKEN].tolist(), *design.anchor]).astype(np.int64)
    if not len(tokens_g):
        return None
    column_v = np.full(len(corpus.vocabulary), -1, np.int64)
    column_v[tokens_g] = np.arange(len(tokens_g))
    lacks_g, named, cells = np.zeros(len(tokens_g), np.int64), list[str](), 0

    def look(piece: tuple[PartRecord, NDArray[np.bool_]]) -> list[tuple[NDArray[np.int64], list[str]]]:
        part, own = piece
        table = corpus.read(corpus.part_uri(part), 0, part.rows, [schema.INPUT_IDS, schema.CELL_ID])
        table = table.filter(pa.array(own))
        slices = (table.slice(start, _CELLS) for start in range(0, table.num_rows, _CELLS))
        return [_lacking(some, column_v, len(tokens_g)) for some in slices]

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for found in threads.map(look, _pieces(corpus, chosen_n)):
            for lacks, names in found:
                lacks_g += lacks
                cells += len(names)
                named.extend(names[: MOST_NAMED - len(named)])
    genes = [corpus.vocabulary.gene_of_token[int(token)] for token in tokens_g]
    return Lacking(
        cells=cells,
        genes={gene: int(number) for gene, number in zip(genes, lacks_g, strict=True) if number},
        named=tuple(named),
    )


def _pieces(corpus: Corpus, chosen_n: NDArray[np.bool_]) -> Iterator[tuple[PartRecord, NDArray[np.bool_]]]:
    """Yield the shards that hold chosen cells, and which of their rows these are."""
    first = 0
    for part in corpus.manifest.parts:
        own = chosen_n[first : first + part.rows]
        first += part.rows
        if own.any():
            yield part, own


def _lacking(table: pa.Table, column_v: NDArray[np.int64], genes: int) -> tuple[NDArray[np.int64], list[str]]:
    """Return in how many of some cells each gene is lacking, and the names of the cells that lack any."""
    rows = TokenRows.from_arrow(table[schema.INPUT_IDS])
    column = column_v[rows.input_ids]
    cell = np.repeat(np.arange(table.num_rows), rows.lengths)
    lacks_ng = np.ones((table.num_rows, genes), bool)
    lacks_ng[cell[column >= 0], column[column >= 0]] = False
    names = table[schema.CELL_ID].filter(pa.array(lacks_ng.any(axis=1))).to_pylist()
    return lacks_ng.sum(axis=0), names
