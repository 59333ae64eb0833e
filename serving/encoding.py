"""From the cells of a request to token rows, by the code of tokenization; and what became of each cell.

Knows vocabularies and arrays; models and HTTP it does not know.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellray.api.schema import CellNote
from cellray.api.wire import CellTable
from cellray.data.collate import TokenRows
from cellray.data.encode_block import encode_block
from cellray.data.gene_ids import ColumnMapping, map_columns
from cellray.data.sources.contract import CountBlock
from cellray.vocabulary import GeneVocabulary

_MAPPINGS_KEPT = 32


@dataclass(frozen=True)
class Encoded:
    """Cells as a model sees them.

    Attributes
    ----------
    rows
        Token rows of the cells that have a known gene.
    place_r
        Which cells of the request these are.
    notes
        Of every cell of the request.
    """

    rows: TokenRows
    place_r: Sequence[int]
    notes: list[CellNote]


class _Body:
    """What messages call the counts of a request."""

    uri, matrix = "cells", "counts"

    def matrices(self) -> list[str]:
        return [self.matrix]


class Encoder:
    """Encodes requests for one vocabulary; remembers what the genes of earlier requests meant."""

    def __init__(self, vocabulary: GeneVocabulary, input_size: int) -> None:
        self._vocabulary, self._layout = vocabulary, vocabulary.layout(input_size)
        self._mappings: OrderedDict[bytes, ColumnMapping] = OrderedDict()

    def __call__(self, cells: CellTable) -> Encoded:
        """Encode cells.

        Raises
        ------
        InputError
            These are no raw counts, or hardly a gene is known.
        """
        indptr, lengths = cells.indptr, np.diff(cells.indptr)
        block = CountBlock(cells.counts, cells.columns, indptr, len(cells.genes), 0)
        made, _, _ = encode_block(block, _Body(), self._mapping(cells.genes), self._vocabulary, self._layout)
        positive = np.concatenate([[0], np.cumsum(cells.counts > 0)])
        given, tokens = positive[indptr[1:]] - positive[indptr[:-1]], np.diff(made.offsets)
        assert len(lengths) == len(tokens), "a row a cell"
        notes = [
            CellNote(
                id=name,
                genes_given=int(given[i]),
                genes_mapped=int(made.n_genes[i]),
                tokens=int(tokens[i]),
                truncated=bool(made.n_genes[i] > self._layout.max_genes),
            )
            for i, name in enumerate(cells.ids)
        ]
        kept = np.flatnonzero(tokens)
        offsets = np.concatenate([[0], np.cumsum(tokens[kept])]).astype(np.int64)
        return Encoded(TokenRows(made.input_ids, offsets), kept.tolist(), notes)

    def _mapping(self, genes: Sequence[str]) -> ColumnMapping:
        digest = hashlib.sha256(json.dumps(list(genes)).encode()).digest()  # no name can pass for two
        known = self._mappings.pop(digest, None) or map_columns(genes, "genes", self._vocabulary, "genes")
        self._mappings[digest] = known
        if len(self._mappings) > _MAPPINGS_KEPT:
            self._mappings.popitem(last=False)
        return known
