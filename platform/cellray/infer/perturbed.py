"""What perturbations do to the embeddings of cells: the measures of a screen, for any set of cells and edits.

Copies of all cells of a call are batched together by a token budget, longest first; copies of one cell and one edit
have one length, so there is hardly any padding. What a call returns depends on its arguments alone, to the last bit.
Pooling and cosines are in float32 whatever the model computes in. Knows no files and no Ray.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from cellray.data.collate import TokenRows, token_budget_batches
from cellray.model.encoder import CellEncoder, first_hidden_states
from cellray.model.pooling import CELL_POOLINGS, is_gene_token
from cellray.perturbation import EDITED, Copies
from cellray.vocabulary import GeneVocabulary, TokenLayout

Effect = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Old ranks of the genes of a copy that stand in the unperturbed row, too, and the cosines of their embeddings."""


@dataclass(frozen=True)
class Measures:
    """What was measured of some perturbed copies; row r is perturbation `number_r` of cell `cell_r`.

    Attributes
    ----------
    similarity_r
        1 = no effect. `cls`: the cosine of the cell's embedding with that of the unperturbed cell; `cell`: the mean,
        over the genes that stand in both rows and were not edited, of the cosine of their embeddings; NaN for a copy
        that has none.
    shift_rs
        For each state the change of the cosine with that state's embedding: positive = towards it.
    effects
        For each row, if they were asked for.
    """

    cell_r: NDArray[np.int64]
    number_r: NDArray[np.int64]
    similarity_r: NDArray[np.float32]
    shift_rs: NDArray[np.float32]
    effects: Sequence[Effect] = ()


@dataclass(frozen=True)
class _Rows:
    """Copies of several cells, one behind the other, with special tokens and the reference each is compared with."""

    tokens: TokenRows
    sources: NDArray[np.int32]
    cell_r: NDArray[np.int64]
    number_r: NDArray[np.int64]
    reference_r: NDArray[np.int64]


@dataclass(frozen=True)
class _References:
    """Unperturbed rows, each (cell, genes) once.

    Attributes
    ----------
    unit_td
        Unit vectors of the genes' embeddings, one row behind the other; empty in `cls` mode.
    first_f
        Where each row's genes begin in `unit_td`.
    embedding_fd
        Of the cells.
    """

    unit_td: Tensor
    first_f: NDArray[np.int64]
    embedding_fd: Tensor


@dataclass
class Perturber:
    """Measures perturbed copies with one model.

    Attributes
    ----------
    encoder
        Layers up to the wanted one, on its device, in the wanted precision.
    pooling
        `cell` or `cls`.
    vocabulary, layout
        Of the token rows.
    states
        Embedding of each state by its name. Shape (hidden,), float32.
    token_budget
        Tokens computed at once.
    effects
        Whether to return the effect on each gene.
    """

    encoder: CellEncoder
    pooling: str
    vocabulary: GeneVocabulary
    layout: TokenLayout
    states: Mapping[str, NDArray[np.float32]]
    token_budget: int
    effects: bool = False

    def __post_init__(self) -> None:
        self._device = next(self.encoder.parameters()).device
        self._gene_v = is_gene_token(self.vocabulary, self._device)
        stacked = np.stack([*self.states.values()]) if self.states else np.empty((0, self.encoder.width), np.float32)
        self._state_sd = normalize(torch.from_numpy(stacked.astype(np.float32)), dim=1).to(self._device)

    @torch.inference_mode()
    def measure(self, cells: Sequence[tuple[NDArray[np.uint16], Sequence[Copies]]]) -> Measures:
        """Measure the copies of some cells.

        Parameters
        ----------
        cells
            For each cell its genes in rank order, without special tokens, and its copies.
        """
        wanted: dict[tuple[int, int], int] = {}
        rows = self._rows(cells, wanted)
        known = self._references([cells[cell][0][:genes] for cell, genes in wanted])
        similarity = np.empty(len(rows.cell_r), np.float32)
        shifts = np.empty((len(rows.cell_r), len(self.states)), np.float32)
        effects: list[Effect] = [None] * len(rows.cell_r)  # type: ignore[list-item]
        for chosen in token_budget_batches(rows.tokens.lengths, self.token_budget):
            found = self._batch(rows, chosen, known)
            similarity[chosen], shifts[chosen] = found[0], found[1]
            for row, effect in zip(chosen, found[2], strict=False):
                effects[row] = effect
        return Measures(rows.cell_r, rows.number_r, similarity, shifts, effects if self.effects else ())

    def _rows(
        self, cells: Sequence[tuple[NDArray[np.uint16], Sequence[Copies]]], wanted: dict[tuple[int, int], int]
    ) -> _Rows:
        """Put all copies one behind the other; `wanted` is filled with the references they need."""
        tokens, sources, lengths, owners, numbers, references = [], [], [], [], [], []
        for cell, (_, copies_of_cell) in enumerate(cells):
            for copies in copies_of_cell:
                reference = wanted.setdefault((cell, copies.reference), len(wanted))
                count = len(copies.numbers_p)
                tokens.append(self._framed(copies.tokens_pm, special=True).ravel())
                sources.append(self._framed(copies.sources_pm, special=False).ravel())
                lengths.append(np.full(count, len(tokens[-1]) // max(count, 1)))
                owners.append(np.full(count, cell))
                numbers.append(copies.numbers_p)
                references.append(np.full(count, reference))
        nothing = np.empty(0, np.int64)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([nothing, *lengths]))]).astype(np.int64)
        flat = np.concatenate([np.empty(0, np.uint16), *tokens])
        return _Rows(
            TokenRows(flat, offsets),
            np.concatenate([np.empty(0, np.int32), *sources]),
            *(np.concatenate([nothing, *each]) for each in (owners, numbers, references)),
        )

    def _framed(self, values_pm: NDArray[np.integer], *, special: bool) -> NDArray[np.integer]:
        """Return rows with the special tokens around them, or with `EDITED` in their places."""
        front = [self.layout.cls_id] if self.layout.cls_id is not None else []
        end = [self.layout.eos_id] if self.layout.eos_id is not None else []
        width = ((0, 0), (len(front), len(end)))
        framed = np.pad(values_pm, width, constant_values=EDITED if not special else 0)
        if special and front:
            framed[:, 0] = front[0]
        if special and end:
            framed[:, -1] = end[0]
        return framed

    def _references(self, rows: Sequence[NDArray[np.uint16]]) -> _References:
        """Embed the unperturbed rows."""
        framed = [self._framed(row[None], special=True)[0] for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in framed])]).astype(np.int64)
        tokens = TokenRows(np.concatenate([np.empty(0, np.uint16), *framed]), offsets)
        first = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        kept = int(first[-1]) if self.pooling == "cell" else 0
        unit_td = torch.empty((kept, self.encoder.width), device=self._device)
        embedding_fd = torch.empty((len(rows), self.encoder.width), device=self._device)
        for chosen in token_budget_batches(tokens.lengths, self.token_budget):
            input_ids_nl = torch.from_numpy(tokens.pad(chosen, self.encoder.pad_id)).to(self._device)
            hidden_nld, gene_nl = self._hidden(input_ids_nl)
            embedding_fd[torch.from_numpy(chosen)] = CELL_POOLINGS[self.pooling](hidden_nld, gene_nl)
            if self.pooling == "cell":
                units = torch.split(normalize(hidden_nld[gene_nl].float(), dim=1), gene_nl.sum(1).tolist())
                for row, unit in zip(chosen.tolist(), units, strict=True):
                    unit_td[first[row] : first[row + 1]] = unit
        return _References(unit_td, first[:-1], embedding_fd)

    def _hidden(self, input_ids_nl: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states, in `cls` mode of the first token alone, and which tokens are genes."""
        if self.pooling == "cls":
            hidden_nd = first_hidden_states(self.encoder.bert, input_ids_nl, self.encoder.pad_id)
            return hidden_nd[:, None], self._gene_v[input_ids_nl]
        return self.encoder(input_ids_nl), self._gene_v[input_ids_nl]

    def _batch(
        self, rows: _Rows, chosen: NDArray[np.int64], known: _References
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[Effect]]:
        """Compute the copies of one batch: similarities, shifts, effects."""
        ids_bl = rows.tokens.pad(chosen, self.encoder.pad_id)
        source_bl = _pad(rows.sources, rows.tokens.offsets, chosen, ids_bl.shape[1])
        return self._compare(ids_bl, source_bl, rows.reference_r[chosen], known)

    def _compare(
        self,
        ids_bl: NDArray[np.int64],
        source_bl: NDArray[np.int32],
        reference_b: NDArray[np.int64],
        known: _References,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[Effect]]:
        """Embed token rows and compare them with their references."""
        hidden_bld, gene_bl = self._hidden(torch.from_numpy(ids_bl).to(self._device))
        after_bd = normalize(CELL_POOLINGS[self.pooling](hidden_bld, gene_bl), dim=1)
        before_bd = normalize(known.embedding_fd[torch.from_numpy(reference_b).to(self._device)], dim=1)
        shift_bs = ((after_bd - before_bd) @ self._state_sd.T).cpu().numpy()
        if self.pooling == "cls":
            return (after_bd * before_bd).sum(1).cpu().numpy(), shift_bs, []
        both_bl = torch.from_numpy(source_bl != EDITED).to(self._device)
        place_bl = np.where(source_bl == EDITED, 0, source_bl) + known.first_f[reference_b][:, None]
        unit_bld = known.unit_td[torch.from_numpy(place_bl).to(self._device)]
        hidden_bld = hidden_bld.float()
        cosine_bl = torch.einsum("bld,bld->bl", hidden_bld, unit_bld) / hidden_bld.norm(dim=2).clamp(min=1e-12)
        similarity_b = (cosine_bl * both_bl).sum(1) / both_bl.sum(1)
        effects = list(_effects(source_bl, cosine_bl.cpu().numpy())) if self.effects else []
        return similarity_b.cpu().numpy(), shift_bs, effects


def _pad(
    values: NDArray[np.int32], offsets: NDArray[np.int64], rows: NDArray[np.int64], width: int
) -> NDArray[np.int32]:
    """Return ragged rows as one matrix, filled up with `EDITED`."""
    lengths = np.diff(offsets)[rows]
    inside = np.arange(width) < lengths[:, None]
    out = np.full((len(rows), width), EDITED, np.int32)
    out[inside] = values[(offsets[rows][:, None] + np.arange(width))[inside]]
    return out


def _effects(source_bl: NDArray[np.int32], cosine_bl: NDArray[np.float32]) -> Iterator[Effect]:
    """Yield for each row the old ranks of its genes and their cosines."""
    for source_l, cosine_l in zip(source_bl, cosine_bl, strict=True):
        both = source_l != EDITED
        yield source_l[both], cosine_l[both]
