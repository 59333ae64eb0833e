"""Checks that token rows from elsewhere are what a vocabulary's rows can be."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellray import schema
from cellray.data.collate import TokenRows
from cellray.errors import InputError
from cellray.vocabulary import CLS, EOS, GeneVocabulary, TokenLayout

_OTHER_VOCABULARY = "Name the vocabulary that it was tokenized with."


def check_rows(cells: pa.Table, first: int, vocabulary: GeneVocabulary, layout: TokenLayout, subject: str) -> TokenRows:
    """Return the token rows of some cells if they can be what the vocabulary and the layout say.

    Parameters
    ----------
    cells
        Holds `input_ids` and perhaps `length`.
    first
        Number of the first row, for messages.
    vocabulary, layout
        What rows must be: known ids, each gene once, at most `input_size` tokens, `<cls>` and `<eos>` at the ends if
        the layout has them, no other special token. A row without any token is a cell without a gene.
    subject
        What is read, for messages.

    Raises
    ------
    InputError
        A row breaks a rule; the message names the first one.
    """
    rows = _Rows(*_numbers(cells[schema.INPUT_IDS], subject), first, subject)
    ids, lengths = rows.ids, np.diff(rows.offsets)
    unknown = (ids < 0) | (ids >= len(vocabulary))
    rows.require_tokens(f"token ids must lie in 0..{len(vocabulary) - 1:,}", unknown)
    if schema.LENGTH in cells.column_names:
        stated = cells[schema.LENGTH].to_numpy()
        rows.require_rows("length must be the number of tokens", stated != lengths, stated, "Save the dataset again.")
    long, fix = lengths > layout.input_size, "Give a larger --input-size."
    rows.require_rows(f"a row holds at most {layout.input_size:,} tokens", long, lengths, fix)
    _check_special(rows, vocabulary, layout)
    seen = np.zeros((len(lengths), len(vocabulary)), bool)
    seen[rows.row_of_token, ids] = True
    repeated = seen.sum(1) != lengths
    rows.require_rows("a gene stands once in a row", repeated, lengths - seen.sum(1), _OTHER_VOCABULARY)
    return TokenRows(ids.astype(np.uint16), rows.offsets)


@dataclass(frozen=True)
class _Rows:
    """Token rows, the number of the first one, and what they were read from."""

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    first: int
    subject: str

    @property
    def row_of_token(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def require_tokens(self, rule: str, broken: NDArray[np.bool_]) -> None:
        """Refuse the first broken token."""
        if broken.any():
            token = int(np.argmax(broken))
            found = f"{self.ids[token]} in row {self.first + int(self.row_of_token[token]):,}"
            raise InputError(self.subject, rule, found, _OTHER_VOCABULARY)

    def require_rows(self, rule: str, broken: NDArray[np.bool_], values: NDArray[np.integer], fix: str) -> None:
        """Refuse the first broken row, telling its value."""
        if broken.any():
            row = int(np.argmax(broken))
            raise InputError(self.subject, rule, f"{values[row]:,} in row {self.first + row:,}", fix)


def _numbers(column: pa.ChunkedArray, subject: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all tokens and where rows begin."""
    try:
        lists = pa.concat_arrays(column.cast(pa.list_(pa.int64())).chunks)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        lists = None
    if lists is None or lists.null_count or lists.flatten().null_count:
        found = f"{column.type}" if lists is None else "missing ones"
        raise InputError(subject, "input_ids must be lists of token ids", found, "Check that this is a token dataset.")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _check_special(rows: _Rows, vocabulary: GeneVocabulary, layout: TokenLayout) -> None:
    """Check that special tokens stand where the layout has them and nowhere else."""
    special = np.isin(rows.ids, list(vocabulary.special_tokens.values()))
    if layout.cls_id is None or layout.eos_id is None:
        rows.require_tokens("rows of this vocabulary hold genes alone", special)
        return
    starts, ends = rows.offsets[:-1], rows.offsets[1:] - 1
    starts, ends = starts[ends >= starts], ends[ends >= starts]
    expected = np.zeros(len(rows.ids), np.int64)
    expected[starts], expected[ends] = layout.cls_id, layout.eos_id  # a row of one token fails at its end
    at_ends = np.zeros(len(rows.ids), bool)
    at_ends[starts] = at_ends[ends] = True
    rows.require_tokens(
        f"rows of this vocabulary begin with {CLS} and end with {EOS}", at_ends & (rows.ids != expected)
    )
    rows.require_tokens("between the ends rows hold genes alone", special & ~at_ends)
