"""What a screen would do: which cells, cut into which units of work, at what cost."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.corpora.corpus import Corpus, scan
from cellray.data.parts import Unit
from cellray.infer.answers import cell_heads
from cellray.infer.choice import choose_cells
from cellray.infer.cutting import AT_ONCE, cells_together, unit_size
from cellray.infer.design import Design
from cellray.model.checkpoint import ModelDirectory

if TYPE_CHECKING:
    from cellray.infer.screen import ScreenConfig

_COPIES_PER_UNIT = 16_384


@dataclass(frozen=True)
class Cost:
    """Rows that go through the model, and their tokens; a backward pass counts as two rows."""

    rows: int
    tokens: int


@dataclass(frozen=True)
class ScreenPlan:
    """What a screen would do.

    Attributes
    ----------
    units
        Pieces of work; each is some cells and some perturbations.
    ranges
        Of each unit, by its key, the number of its first cell in the corpus and which perturbations it does.
    chosen_n
        Which cells of the corpus are perturbed.
    skipped
        Why others are not: reason to cells.
    copies, tokens
        Perturbed copies at most, and their tokens.
    other
        What is computed besides, by what it is for.
    together
        How many neighbouring cells are batched together.
    work
        Perturbed copies of each unit at most, by its key: what progress is told in.
    """

    units: list[Unit]
    ranges: dict[str, tuple[int, int, int]]
    chosen_n: NDArray[np.bool_]
    skipped: dict[str, int]
    copies: int
    tokens: int
    together: int
    work: dict[str, int]
    other: dict[str, Cost] = field(default_factory=dict)

    @property
    def whole(self) -> Cost:
        """All that is computed."""
        return Cost(
            self.copies + sum(cost.rows for cost in self.other.values()),
            self.tokens + sum(cost.tokens for cost in self.other.values()),
        )


def make_plan(config: "ScreenConfig", corpus: Corpus, model: ModelDirectory, design: Design) -> ScreenPlan:
    """Choose the cells and cut the work into units.

    Raises
    ------
    InputError
        No cell is left to perturb.
    """
    chosen_n, skipped = choose_cells(
        corpus, config.state_column, config.start, config.donor, config.max_cells, config.seed
    )
    length_n = corpus_lengths(corpus)
    listed_n = length_n if design.every_gene else np.full_like(length_n, len(design))
    each_n = np.minimum(listed_n, config.max_perturbations or listed_n.max())
    most = int(each_n[chosen_n].max())
    together = cells_together(min(AT_ONCE if design.every_gene else len(design), config.max_perturbations or AT_ONCE))
    cells, width = unit_size(most, together, config.cells_per_part, _COPIES_PER_UNIT)
    parameters = {
        "model": model.digest,
        "design": design.digest,
        "chosen": storage.sha256_bytes(np.packbits(chosen_n).tobytes()),
        "states": _state_parameters(config),
        "budget": config.budget,
        "device": "gpu" if config.gpus_per_actor else "cpu",  # their last bits differ
        "together": together,
        **{name: getattr(config, name) for name in ("kind", "quartiles", "layer", "pooling", "precision", "effects")},
        **({"heads": [spec.to_json() for spec in cell_heads(model)]} if config.probabilities else {}),
    }
    units, ranges, work, first = [], {}, {}, 0
    for unit in corpus.plan_units(cells, **parameters):
        own = chosen_n[first : first + unit.stop - unit.start]
        for start in range(0, most, width) if own.any() else []:
            stop = min(most, start + width)
            key = schema.request_digest(unit=unit.key, first=start, stop=stop)
            units.append(replace(unit, key=key))
            ranges[key] = (first, start, stop)
            count_n = np.clip(each_n[first : first + len(own)][own] - start, 0, stop - start)
            work[key] = int(design.copies(count_n, start).sum())
        first += len(own)
    copies_n = design.copies(each_n[chosen_n])
    tokens = int((copies_n * length_n[chosen_n]).sum())
    copies = int(copies_n.sum())
    other = _other_costs(config, length_n, chosen_n, Cost(copies, tokens))
    return ScreenPlan(units, ranges, chosen_n, skipped, copies, tokens, together, work, other)


def _other_costs(
    config: "ScreenConfig", length_n: NDArray[np.int64], chosen_n: NDArray[np.bool_], copies: Cost
) -> dict[str, Cost]:
    """Return what is computed beside the copies; cells' states are embedded with all other cells of the corpus."""
    cells = Cost(int(chosen_n.sum()), int(length_n[chosen_n].sum()))
    again = Cost(copies.rows + cells.rows, copies.tokens + cells.tokens)
    every = Cost(len(length_n), int(length_n.sum()))
    found = {"unperturbed cells": (True, cells), "what heads tell": (config.probabilities, again)}
    found["states"] = (config.state_column is not None and config.state_embeddings is None, every)
    return {name: cost for name, (asked, cost) in found.items() if asked}


def corpus_lengths(corpus: Corpus) -> NDArray[np.int64]:
    """Return the tokens of every cell of a corpus. Shape (cells,)."""
    pieces = list(scan(corpus, [schema.LENGTH], lambda _, cells: cells[schema.LENGTH].to_numpy()))
    return np.concatenate([np.empty(0, np.int64), *pieces]).astype(np.int64)


def _state_parameters(config: "ScreenConfig") -> Any:  # noqa: ANN401  # JSON
    if config.states is None:
        return None
    if config.state_embeddings is not None:
        return {"given": storage.sha256_file(config.state_embeddings), **config.states.model_dump()}
    return {"column": config.state_column, "statistic": config.state_statistic, **config.states.model_dump()}
