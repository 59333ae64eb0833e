"""Answers as JSON and in the binary form, and parts of screens put together. Arrow and numpy only."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cellray import shift_schema
from cellray.api import wire
from cellray.api.schema import EmbeddingResponse, GeneEmbeddings, PerturbationResponse, Pooling, PredictionResponse
from serving.answers import Embedded, ScreenPlan, Tabled
from serving.json_body import listed, rows_json, table_json, with_field
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
    """Return a screen's answer with the strongest perturbations of each cell alone, and count what `top` cut."""
    table = strongest(found.table, [note.id for note in found.notes], ask["goal"], ask["top"])
    cut = found.counts.get(shift_schema.PERTURBED, table.num_rows) - table.num_rows  # of jobs: in their parts, too
    counts = {**found.counts, **({shift_schema.LEFT_OUT: cut} if cut else {})}
    return Tabled(found.stamp, found.notes, table, counts, found.tokens)


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
        return with_field(response, "embeddings", rows_json(found.embedding_nd))
    ends = np.searchsorted(found.cell_t, np.arange(len(ids) + 1))
    cells = (
        GeneEmbeddings.model_construct(
            id=name, genes=list(found.gene_t[start:stop]), embeddings=found.embedding_nd[start:stop].tolist()
        )
        for name, start, stop in zip(ids, ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    )
    return with_field(response, "genes", listed([cell] for cell in cells))


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
    return with_field(response, "table", table_json(table))
