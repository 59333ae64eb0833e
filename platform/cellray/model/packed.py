"""Rows without padding: cells of different length one behind the other in one row.

Padding costs as much as tokens do. In one row a cell is told by its place: positions begin anew with each cell, and the
attention (`cellray.model.attention`) lets a cell see itself only. Everything else of BERT works token by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import BertModel

from cellray.model.attention import ATTENTION


@dataclass(frozen=True)
class PackedBatch:
    """Cells in one row.

    Attributes
    ----------
    input_ids_nl
        1 x tokens of all cells, int64.
    position_ids_nl
        Each token's place in its cell, from 0. 1 x tokens, int64.
    cu_lengths
        Where each cell begins in the row, and the row's end. Cells + 1, int32.
    longest
        Tokens of the longest cell.
    """

    input_ids_nl: Tensor
    position_ids_nl: Tensor
    cu_lengths: Tensor
    longest: int

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.cu_lengths) - 1

    def to(self, device: torch.device) -> Self:
        """Return the row on a device."""
        tensors = (self.input_ids_nl, self.position_ids_nl, self.cu_lengths)
        input_ids_nl, position_ids_nl, cu_lengths = (x.to(device, non_blocking=True) for x in tensors)
        return type(self)(input_ids_nl, position_ids_nl, cu_lengths, self.longest)


def pack(rows: Sequence[Tensor]) -> PackedBatch:
    """Put cells into one row.

    Parameters
    ----------
    rows
        Each cell's token ids, without padding; at least one cell, none empty.
    """
    lengths = torch.tensor([len(row) for row in rows])
    assert len(rows), "at least one cell"
    assert int(lengths.min()) > 0, "an empty cell"
    return _packed(torch.cat(list(rows)), lengths)


def unpad(input_ids_nl: Tensor, pad_id: int) -> PackedBatch:
    """Put padded cells into one row without their padding. Meant for tensors of the CPU: on a GPU it would wait."""
    present_nl = input_ids_nl != pad_id
    return _packed(input_ids_nl[present_nl], present_nl.sum(dim=1))


def _packed(ids_t: Tensor, lengths: Tensor) -> PackedBatch:
    ends = lengths.cumsum(0)
    position_t = torch.arange(len(ids_t)) - (ends - lengths).repeat_interleave(lengths)
    cu_lengths = torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)
    return PackedBatch(ids_t[None].to(torch.int64), position_t[None], cu_lengths, int(lengths.max()))


def packed_hidden(bert: BertModel, batch: PackedBatch) -> Tensor:
    """Return the hidden states of all cells' tokens, one behind the other. Shape (tokens, hidden).

    The encoder must have been given to `cellray.model.attention.use_attention`.
    """
    assert bert.config._attn_implementation == ATTENTION, "another attention would let cells see each other"
    out = bert(
        input_ids=batch.input_ids_nl,
        position_ids=batch.position_ids_nl,
        cu_seq_lens_q=batch.cu_lengths,
        cu_seq_lens_k=batch.cu_lengths,
        max_length_q=batch.longest,
        max_length_k=batch.longest,
    )
    hidden_td: Tensor = out.last_hidden_state[0]
    return hidden_td
