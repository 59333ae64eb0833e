"""An obs column of a token corpus as codes of its distinct values, one for every cell.

The column is read alone, shard by shard; token rows are never touched.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cellray.data.corpora.corpus import Corpus, scan
from cellray.errors import InputError
from cellray.schema import PartRecord

MISSING = -1
"""Code of a cell without a value."""
NUMERIC = ("integer", "real")
"""Kinds of obs columns that hold numbers."""


@dataclass(frozen=True)
class CodedColumn:
    """An obs column with few distinct values, as codes.

    Attributes
    ----------
    column
        Its name.
    code_n
        Index into `values`, or -1 where the column is null or blank. Shape (cells,).
    values
        Distinct values as text, sorted; whole numbers by value.
    """

    column: str
    code_n: NDArray[np.int32]
    values: tuple[str, ...]


def read_codes(corpus: Corpus, column: str, option: str) -> CodedColumn:
    """Read an obs column as codes of its distinct values.

    Parameters
    ----------
    corpus
        Holds it.
    column
        Of text, flags or whole numbers.
    option
        What asks for it, for the message.

    Raises
    ------
    InputError
        The corpus lacks the column, or it holds fractions.
    """
    corpus.require_column(column, option)
    kind = corpus.manifest.obs_kinds[column]

    def encode(part: PartRecord, cells: pa.Table) -> tuple[NDArray[np.int32], list[str]]:
        coded = _as_text(cells[column].combine_chunks(), kind, corpus.uri, column).dictionary_encode()
        return np.asarray(coded.indices.fill_null(MISSING), np.int32), coded.dictionary.to_pylist()

    code_n, first = np.full(corpus.manifest.rows, MISSING, np.int32), 0
    known: dict[str, int] = {}
    for codes, values in scan(corpus, [column], encode):
        table = np.array([*(known.setdefault(value, len(known)) for value in values), MISSING], np.int32)
        code_n[first : first + len(codes)] = table[codes]  # MISSING takes the last entry
        first += len(codes)
    ordered = sorted(known, key=int) if kind in NUMERIC else sorted(known)
    rank = np.full(len(known) + 1, MISSING, np.int32)
    rank[[known[value] for value in ordered]] = np.arange(len(known))
    return CodedColumn(column, rank[code_n], tuple(ordered))


def _as_text(values: pa.Array, kind: str, uri: str, column: str) -> pa.Array:
    """Return values as text, null where they are blank or NaN; whole numbers without a fraction."""
    if kind == "real":  # whole numbers with gaps come as fractions from pandas
        values = pc.if_else(pc.is_nan(values), None, values)
        whole = pc.and_(pc.is_finite(values), pc.equal(pc.floor(values), values))
        if pc.all(whole).as_py() is False:
            found = f"{values.filter(pc.invert(whole))[0]} in {column!r}"
            fix = 'Recode the column, or learn it with kind = "regression".'
            raise InputError(uri, "a column of classes must hold text, flags or whole numbers", found, fix)
        values = values.cast(pa.int64())
    text = values.cast(pa.string())
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), None, text)
