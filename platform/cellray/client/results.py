"""From the answers about chunks to arrays and tables about all cells, under the names the cells have here."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray.api.schema import ModelStamp
from cellray.api.wire import EMBEDDING, GENE, ID
from cellray.client.sending import Answered
from cellray.shift_schema import DOES_NOT_APPLY, PERTURBED

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_CELL = "cell_id"
_NOTES = ("genes_given", "genes_mapped", "tokens", "truncated")


@dataclass(frozen=True)
class Embedded:
    """Embeddings and what became of each cell.

    Attributes
    ----------
    embedding_nd
        A row for each cell, NaN for cells without a gene that the model knows.
    notes
        genes_given, genes_mapped, tokens and truncated of each cell.
    model
        Which one answered; None if there was no cell.
    """

    embedding_nd: NDArray[np.float32]
    notes: "pd.DataFrame"
    model: ModelStamp | None


def embedded(answers: Sequence[Answered[NDArray[np.float32]]], cell_ids: Sequence[str], width: int) -> Embedded:
    """Return embeddings of all cells, in their order.

    Parameters
    ----------
    width
        Of an embedding, where there is no cell to see it from.
    """
    parts = [answer.result for answer in answers]
    embedding_nd = np.concatenate(parts) if parts else np.empty((0, width), np.float32)
    assert len(embedding_nd) == len(cell_ids), "a chunk's answer has a row for each of its cells"
    return Embedded(embedding_nd, cell_notes(answers, cell_ids), stamp_of(answers))


def gene_frame(answers: Sequence[Answered[pa.Table]], cell_ids: Sequence[str]) -> "pd.DataFrame":
    """Return embeddings of genes: a row for each gene of a cell, by (cell_id, gene), in rank order."""
    import pandas as pd

    table = _table(answers)
    if table is None:
        return pd.DataFrame()
    values = table[EMBEDDING].combine_chunks()
    embedding_td = values.flatten().to_numpy().reshape(len(values), -1)
    index = pd.MultiIndex.from_arrays([_names(table[ID], cell_ids), table[GENE].to_pylist()], names=[_CELL, GENE])
    return _about(pd.DataFrame(embedding_td, index=index), answers, cell_ids)


def prediction_frame(answers: Sequence[Answered[pa.Table]], cell_ids: Sequence[str]) -> "pd.DataFrame":
    """Return predictions: a row for each cell, in their order; of models that tell of genes, a row for each gene."""
    import pandas as pd

    table = _table(answers)
    if table is None or GENE in table.column_names:
        return long_frame(answers, cell_ids)
    frame = table.to_pandas()
    frame.index = pd.Index(frame.pop(_CELL).astype(int))
    frame = frame.reindex(range(len(cell_ids)))
    frame.index = pd.Index(cell_ids, name=_CELL)
    return _about(frame, answers, cell_ids)


def effect_frame(answers: Sequence[Answered[pa.Table]], cell_ids: Sequence[str]) -> "pd.DataFrame":
    """Return effects of perturbations, and say in the log how many of those asked for do not apply."""
    frame = long_frame(answers, cell_ids)
    counts = frame.attrs.get("counts", {})
    if lost := counts.get(DOES_NOT_APPLY, 0):
        told = "%d of %d (cell, perturbation) pairs do not apply and have no row: the cell does not have the gene "
        told += "among those that the model sees, or nothing would change"
        logger.warning(told, lost, lost + counts.get(PERTURBED, 0))
    return frame


def long_frame(answers: Sequence[Answered[pa.Table]], cell_ids: Sequence[str]) -> "pd.DataFrame":
    """Return a table as the server tells it, with the cells' names."""
    import pandas as pd

    table = _table(answers)
    if table is None:
        return pd.DataFrame()
    frame = table.to_pandas()
    frame[_CELL] = _names(table[_CELL], cell_ids)
    frame = _about(frame, answers, cell_ids)
    counts = Counter[str]()
    for answer in answers:
        counts.update(answer.about.get("counts", {}))
    frame.attrs |= {"counts": dict(counts)} if counts else {}
    return frame


def stamp_of(answers: Sequence[Answered[Any]]) -> ModelStamp | None:
    """Return which model answered; None if nothing was asked."""
    return ModelStamp.model_validate(answers[-1].about["model"], extra="ignore") if answers else None


def cell_notes(answers: Sequence[Answered[Any]], cell_ids: Sequence[str]) -> "pd.DataFrame":
    """Return what became of each cell, and say in the log how many could not be embedded or were cut."""
    import pandas as pd

    rows = [[note[name] for name in _NOTES] for answer in answers for note in answer.about["notes"]]
    frame = pd.DataFrame(rows, columns=list(_NOTES), index=pd.Index(cell_ids, name=_CELL))
    unknown, cut = int((frame["genes_mapped"] == 0).sum()), int((frame["truncated"] == True).sum())  # noqa: E712
    if unknown:
        logger.warning("%d of %d cells have no gene that the model knows; their rows are NaN", unknown, len(frame))
    if cut:
        logger.info("of %d of %d cells, genes were cut off at the model's input size", cut, len(frame))
    return frame


def _about(frame: "pd.DataFrame", answers: Sequence[Answered[Any]], cell_ids: Sequence[str]) -> "pd.DataFrame":
    """Add to a table which model answered and how many cells it could not be asked about."""
    notes, stamp = cell_notes(answers, cell_ids), stamp_of(answers)
    frame.attrs |= {
        "model": {} if stamp is None else stamp.model_dump(),
        "cells": len(notes),
        "cells_without_known_genes": int((notes["genes_mapped"] == 0).sum()),
        "cells_truncated": int(notes["truncated"].astype(bool).sum()),
    }
    return frame


def _names(rows: pa.ChunkedArray, cell_ids: Sequence[str]) -> NDArray[np.object_]:
    """Return cells' names here for their row numbers."""
    names: NDArray[np.object_] = np.asarray(cell_ids, object)[rows.cast(pa.int64()).to_numpy()]
    return names


def _table(answers: Sequence[Answered[pa.Table]]) -> pa.Table | None:
    return pa.concat_tables([answer.result for answer in answers]) if answers else None
