"""The tables and manifests of in silico perturbation screens and of their statistics; see `cellray.schema`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from cellray.schema import CELL_ID, Manifest, Parent, PartRecord, Record

COMPUTED_AGAIN = "copies computed again in higher precision"
LARGEST_NOISE = ("largest noise of a similarity x 1e9", "largest noise of a shift x 1e9")
UNPERTURBED = "distance from 1 of an unperturbed copy x 1e9"
"""Names under which a part of a screen counts how much of its measures is rounding."""
PERTURBED, DOES_NOT_APPLY = "perturbations", "perturbations that do not apply to a cell"
LEFT_OUT = "rows left out"
"""Names of counts of answers: what was computed, what was not, and what was computed but not told."""
EFFECTS = "effects"
"""Folder of the parts with gene effects, below the directory of a screen."""
NOTE = "screen.json"
"""What a screen is to do, written when it begins: a reader of an unfinished one finds it there."""

PERTURBATION = "perturbation"
GENES = "genes"
NAME = "name"
RANK = "rank"
CELL_GENES = "cell_genes"
SIMILARITY = "similarity"
AFFECTED = "affected"
GROUP_MARK = "|"
"""Stands between the Ensembl IDs of genes that are perturbed together."""
INSERTED = -1
"""Rank of a gene that the cell did not express."""
SHIFT_PREFIX = "shift:"
BEFORE_PREFIX, CHANGE_PREFIX = "before:", "change:"
"""Stand before the name of a prediction (see `cellray.prediction_schema`): what it was, and how it changed."""

Kind = Literal["delete", "overexpress", "inhibit", "activate"]


def shift_column(state: str) -> str:
    """Return the column with the shifts towards a state."""
    return SHIFT_PREFIX + state


def answer_columns(predictions: Iterable[str]) -> list[str]:
    """Return the columns of predictions: of each what it was before the edit, and by how much the edit changed it."""
    return [prefix + name for name in predictions for prefix in (BEFORE_PREFIX, CHANGE_PREFIX)]


def shift_schema(
    states: Iterable[str], obs: Sequence[pa.Field], predictions: Iterable[str] = (), *, named: bool = False
) -> pa.Schema:
    """Return the schema of a screen: one row for each cell and perturbation.

    `name` is that of a perturbation where a file gave names, else there is no such column.
    `rank` is that of the gene in the cell before the edit, of genes perturbed together the best, `INSERTED` if the cell
    expresses none of them. `similarity` is the cosine similarity of the edited and the unedited cell, 1 = no effect.
    `shift:STATE` is the cosine similarity to the state after less that before; positive = towards the state.
    `before:PREDICTION` is what a fine-tuned model's head tells of the unedited cell, as `disease.probability.sick`, and
    `change:PREDICTION` what it tells of the edited one less that.
    """
    return pa.schema(
        [
            pa.field(CELL_ID, pa.string(), nullable=False),
            pa.field(PERTURBATION, pa.int32(), nullable=False),
            pa.field(GENES, pa.string(), nullable=False),
            *([pa.field(NAME, pa.string(), nullable=False)] if named else []),
            pa.field(RANK, pa.int32(), nullable=False),
            pa.field(CELL_GENES, pa.int32(), nullable=False),
            pa.field(SIMILARITY, pa.float32(), nullable=False),
            *(pa.field(shift_column(state), pa.float32(), nullable=False) for state in states),
            *(pa.field(column, pa.float32(), nullable=False) for column in answer_columns(predictions)),
            *obs,
        ]
    )


def effect_schema() -> pa.Schema:
    """Return the schema of gene effects: one row for each cell, perturbation and gene that stays in the cell."""
    return pa.schema(
        [
            pa.field(CELL_ID, pa.string(), nullable=False),
            pa.field(PERTURBATION, pa.int32(), nullable=False),
            pa.field(GENES, pa.string(), nullable=False),
            pa.field(AFFECTED, pa.string(), nullable=False),
            pa.field(SIMILARITY, pa.float32(), nullable=False),
        ]
    )


class States(Record):
    """Cell states that shifts are measured towards; cells of the start state are perturbed."""

    start: str
    goal: str | None = None
    alternatives: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All states, in the order of their columns."""
        return (self.start, *(() if self.goal is None else (self.goal,)), *self.alternatives)


class Lacking(Record):
    """Chosen cells whose rows lack a listed gene: it is not perturbed there, or is inserted by overexpression.

    Attributes
    ----------
    cells
        Those that lack one at least.
    genes
        For each listed gene that is lacking somewhere, in how many cells.
    named
        The first such cells, in the corpus's order.
    """

    cells: int
    genes: dict[str, int]
    named: tuple[str, ...]


class ScreenNote(Record):
    """What a screen is to do: `screen.json`.

    Attributes
    ----------
    units
        Parts it will have.
    perturbations
        Perturbations of cells at most; some may turn out not to apply. With estimates: about so many.
    estimates, estimate_units
        Where the estimates of a prefiltered screen go, and in how many parts; they come first.
    """

    artefact: Literal["screen to do"] = "screen to do"
    request: str
    kind: Kind
    corpus: str
    model: str
    cells: int
    units: int
    perturbations: int
    estimates: str | None = None
    estimate_units: int = 0


class ShiftManifest(Manifest):
    """Manifest of an in silico perturbation screen.

    Attributes
    ----------
    kind
        What was done to the genes.
    states
        None: nothing but similarities was measured.
    obs_kinds
        Obs columns that were kept, and their kinds.
    design
        How the perturbations were asked for, as far as a reader may want to know.
    skipped
        Why cells were not perturbed: reason to cells.
    lacking
        Which chosen cells lack which listed gene; None where every gene of a cell was perturbed alone.
    predictions
        What a fine-tuned model told, by the names of `cellray.prediction_schema`.
    effect_parts
        Parts with gene effects; none if these were not asked for.
    """

    artefact: Literal["perturbation shifts"] = "perturbation shifts"
    kind: Kind
    corpus: str
    corpus_digest: str
    model: str
    model_digest: str
    layer: int
    pooling: str
    states: States | None = None
    obs_kinds: dict[str, str] = Field(default_factory=dict)
    design: dict[str, Any] = Field(default_factory=dict)
    skipped: dict[str, int] = Field(default_factory=dict)
    lacking: Lacking | None = None
    predictions: tuple[str, ...] = ()
    effect_parts: tuple[PartRecord, ...] = ()

    @property
    def all_parts(self) -> tuple[PartRecord, ...]:
        """Parts of shifts, and of gene effects."""
        return (*self.parts, *self.effect_parts)


class StatisticsManifest(Manifest):
    """Manifest of the statistics of a screen. Its parts are the tables in parquet.

    Attributes
    ----------
    mode, options
        What was computed.
    shifts, null
        The screens it was computed from.
    csv
        The same tables as CSV.
    rows_read, genes
        Rows of the screen and rows of the gene table.
    dropped
        What is not in the table: reason to number.
    notes
        What was fitted and which tests were done.
    """

    artefact: Literal["perturbation statistics"] = "perturbation statistics"
    mode: str
    options: dict[str, Any]
    shifts: Parent
    null: Parent | None = None
    csv: tuple[PartRecord, ...]
    rows_read: int
    genes: int
    dropped: dict[str, int]
    notes: dict[str, Any]
