"""Answers as JSON and in the binary form, and parts of screens put together. Arrow and numpy only."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic_core import to_json

from cellray import shift_schema
from cellray.api import wire
from cellray.api.schema import EmbeddingResponse, GeneEmbeddings, PerturbationResponse, Pooling, PredictionResponse
from serving.answers import Embedded, ScreenPlan, Tabled
from serving.ranking import strongest


def joined(plan: ScreenPlan, parts: Sequence[Tabled]) -> Tabled:
    """Put the parts of a screen together: the strongest of each cell, in the cells' order."""
    empty = shift_schema.shift_schema((), ()).empty_table()
    table = pa.concat_tables([part.table for part in parts]) if parts else empty
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    return ranked(Tabled(plan.stamp, plan.notes, table, dict(counts), plan.tokens), plan.ask)


def ranked(found: Tabled, ask: dict[str, Any]) -> Tabled:
    """Return a screen's answer with the strongest perturbations of each cell alone."""
    table = strongest(found.table, [note.id for note in found.notes], ask["goal"], ask["top"])
    return Tabled(found.stamp, found.notes, table, found.counts, found.tokens)


def embedding_body(found: Embedded, pooling: Pooling, layer: int, *, binary: bool) -> bytes:
    """Return an answer with embeddings."""
    response = EmbeddingResponse.model_construct(model=found.stamp, pooling=pooling, layer=layer, notes=found.notes)
    ids = [note.id for note in found.notes]
    if binary:
        about = response.model_dump(exclude={"embeddings", "genes"})
        if found.cell_t is None:
            return wire.pack_embeddings(ids, found.embedding_nd, about)
        columns = {
            wire.ID: pa.array(ids, pa.string()).take(pa.array(found.cell_t)),
            wire.GENE: pa.array(found.gene_t, pa.string()),
            wire.EMBEDDING: wire.vectors(found.embedding_nd),
        }
        return wire.pack_table(pa.table(columns), about)
    if found.cell_t is None:
        lost = set(np.flatnonzero(np.isnan(found.embedding_nd).any(axis=1)).tolist())
        rows = [None if i in lost else row for i, row in enumerate(found.embedding_nd.tolist())]
        return to_json(response.model_copy(update={"embeddings": rows}))
    ends = np.searchsorted(found.cell_t, np.arange(len(ids) + 1))
    genes = [
        GeneEmbeddings.model_construct(
            id=name, genes=list(found.gene_t[start:stop]), embeddings=found.embedding_nd[start:stop].tolist()
        )
        for name, start, stop in zip(ids, ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    ]
    return to_json(response.model_copy(update={"genes": genes}))


def prediction_body(found: Tabled, *, binary: bool) -> bytes:
    """Return an answer with predictions."""
    response = PredictionResponse.model_construct(model=found.stamp, notes=found.notes)
    return _table_body(response, found.table, binary=binary)


def perturbation_body(found: Tabled, *, binary: bool) -> bytes:
    """Return an answer with effects of perturbations."""
    response = PerturbationResponse.model_construct(model=found.stamp, notes=found.notes, counts=found.counts)
    return _table_body(response, found.table, binary=binary)


def _table_body(response: PredictionResponse | PerturbationResponse, table: pa.Table, *, binary: bool) -> bytes:
    if binary:
        return wire.pack_table(table, response.model_dump(exclude={"table"}))
    columns = {name: table[name].to_pylist() for name in table.schema.names}
    return to_json(response.model_copy(update={"table": columns}))
