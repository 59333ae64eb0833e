"""Screens and embeddings of an AnnData in a notebook: the jobs' own code, in this process, without Ray.

The cells become a token corpus in a temporary folder, and the job runs over it with `--actors 0`; so options, columns,
numbers and errors are the job's. Only the AnnData in and the table out are this module's.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cellray import schema
from cellray.config import make_config
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.memory_corpus import Reading
from cellray.errors import InputError, listing
from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.notebook_cells import check_arguments, named, with_corpus
from cellray.infer.results import Embeddings
from cellray.infer.screen import ScreenConfig, check_states, screen
from cellray.infer.screen_plan import ScreenPlan
from cellray.infer.states import pooled_by_state, write_states
from cellray.models import open_model
from cellray.prefilter_schema import GENE_TABLE, PrefilterManifest
from cellray.schema import PartRecord
from cellray.shift_schema import DOES_NOT_APPLY, ShiftManifest
from cellray.vocabulary import GeneVocabulary

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
_NAME = "cellray.Screen"
_OWN = ("corpus", "model", "output", "actors", "dry_run")
_LISTS = ("genes", "anchor", "alternatives")
_READ = ("vocabulary", "matrix", "gene_ids", "obs_columns")
_SHARED = ("layer", "pooling", "token_budget", "cells_per_part", "gpus_per_actor", "threads", "tracking_uri")


def perturb(adata: "AnnData", model: str, **options: Any) -> pd.DataFrame:  # noqa: ANN401  # see `Screen`
    """Perturb genes of the cells of an AnnData; the same as `Screen(model, **options).perturb(adata)`.

    Examples
    --------
    >>> perturb(adata, "models/v1", genes=["GATA4", "TBX5"], state_column="disease", start="sick", goal="healthy")
    """
    with named("cellray.perturb", _NAME):
        return Screen(model, **options).perturb(adata)


def embed(adata: "AnnData", model: str, **options: Any) -> NDArray[np.float32]:  # noqa: ANN401  # named below
    """Embed the cells of an AnnData.

    Parameters
    ----------
    adata, model
        As of `Screen`.
    options
        `vocabulary`, `matrix` and `gene_ids` as of `Screen`. `layer`: 0 is the last hidden state, -1 (default) the one
        before. `pooling`: `cell` (default, the mean over genes) or `cls`. Of the machine: `token_budget` [tokens],
        `cells_per_part` [cells], `threads`, `gpus_per_actor` (1: compute on a GPU). `tracking_uri`: the MLflow that
        knows models:/ names.

    Returns
    -------
    NDArray[np.float32]
        A row for each cell in the order of `adata.obs_names`, NaN for cells with nothing to encode (the log says how
        many). Shape (cells, hidden).
    """
    check_arguments("cellray.embed", options, ("adata", "model", *_READ[:3], *_SHARED))
    with named("cellray.embed", _NAME):
        return Screen(model, **options).embed(adata)


class Screen:
    """A model, a design and options of a screen, for any number of AnnData.

    Parameters
    ----------
    model
        A model directory, ours or an official Geneformer one, or models:/NAME@ALIAS.
    vocabulary
        For an official directory, which holds none: a vocabulary or its file.
    matrix
        Where the raw counts are: `X`, `raw` or `layers/NAME`.
    gene_ids
        Var column with the gene ids, or `index`; default: `ensembl_id` if there is one, else the index. Ensembl IDs,
        with versions or without, and symbols if the vocabulary knows them.
    obs_columns
        Columns of obs to put beside each shift; those of states and donors are there anyway.
    options
        Those of the job: `kind`, `genes`, `together`, `pairs`, `anchor`, `state_column`, `start`, `goal`, ...: see
        `cellray.infer.screen.ScreenConfig`.

    Raises
    ------
    InputError
        An option is unknown or wrong, or there is no such model.
    """

    def __init__(
        self,
        model: str,
        *,
        vocabulary: str | GeneVocabulary | None = None,
        matrix: str = "X",
        gene_ids: str | None = None,
        obs_columns: Sequence[str] = (),
        **options: Any,  # noqa: ANN401
    ) -> None:
        if wrong := [name for name in options if name in _OWN]:
            raise InputError(_NAME, "takes no options of places and workers", listing(wrong), "Leave them out.")
        own = [name for name in ScreenConfig.model_fields if name not in _OWN]
        check_arguments(_NAME, options, ("model", *_READ, *own))
        self._options = {name: _as_list(name, value) for name, value in options.items()}
        self._model, reference = open_model(model, options.get("tracking_uri"))
        self._options["model"] = reference.uri
        self._states: dict[str, NDArray[np.float32]] = {}
        self.vocabulary = _vocabulary(vocabulary, self._model.vocabulary, reference.uri)
        config = self._config("", "")
        columns = (*obs_columns, config.state_column, config.donor)
        kept = tuple(dict.fromkeys(name for name in columns if name is not None))
        self._reading = Reading(matrix, gene_ids, kept)

    def perturb(self, adata: "AnnData") -> pd.DataFrame:
        """Perturb the cells of an AnnData.

        Returns
        -------
        pd.DataFrame
            A row for each cell and perturbation, with the columns of the job's parquet (see
            `cellray.shift_schema.shift_schema`). `attrs["counts"]` says what was left out: cells by reason, columns of
            the matrix that are no genes of the vocabulary, perturbations that did not apply, genes that cells lack.
            With `exact=False` the rows are those that were evaluated; `attrs["genes"]` are the columns of the gene
            table, for `pd.DataFrame`, and `attrs["report"]` says how good its estimates are.

        Raises
        ------
        InputError
            These are no raw counts, hardly a gene is known, a state has no cells: whatever the jobs refuse.
        """
        return self._run(adata, self._reading, self._shifts)

    def effects(self, adata: "AnnData") -> pd.DataFrame:
        """Perturb the cells of an AnnData and return the effect on each other gene of each cell.

        Returns
        -------
        pd.DataFrame
            See `cellray.shift_schema.effect_schema`.
        """
        return self._run(adata, self._reading, self._effects)

    def embed(self, adata: "AnnData") -> NDArray[np.float32]:
        """Embed the cells of an AnnData by the screen's layer and pooling; see the function `embed`."""

        def rows(corpus: Corpus, folder: Path) -> NDArray[np.float32]:
            embeddings = self._embeddings(corpus, folder)
            table = embeddings.table()
            out = np.full((adata.n_obs, embeddings.manifest.width), np.nan, np.float32)
            out[table[schema.SOURCE_ROW].to_numpy()] = embeddings.matrix(table)
            if lost := adata.n_obs - table.num_rows:
                logger.warning("%d of %d cells have nothing to encode: their rows are NaN", lost, adata.n_obs)
            return out

        return self._run(adata, Reading(self._reading.matrix, self._reading.gene_ids), rows)

    def states_from(
        self, adata: "AnnData", column: str, *, start: str, goal: str, alternatives: Sequence[str] = ()
    ) -> "Screen":
        """Return this screen with states of another AnnData, as an atlas: all cells it is given are then perturbed.

        Parameters
        ----------
        adata
            Labelled cells, read as those to perturb are.
        column
            Column of its obs with the states.
        start, goal, alternatives
            Its values that shifts are measured towards.
        """
        names = (start, goal, *alternatives)

        def pooled(corpus: Corpus, folder: Path) -> dict[str, NDArray[np.float32]]:
            check_states(corpus, column, {"start": (start,), "goal": (goal,), "alternatives": tuple(alternatives)})
            statistic = str(self._options.get("state_statistic", "mean"))
            return pooled_by_state(self._embeddings(corpus, folder), column, names, statistic)

        reading = Reading(self._reading.matrix, self._reading.gene_ids, (column,))
        states = {"start": start, "goal": goal, "alternatives": tuple(alternatives)}
        own = {**self._options, "state_column": None, **states}
        made = object.__new__(Screen)
        made._options, made._model, made.vocabulary, made._reading = own, self._model, self.vocabulary, self._reading
        made._states = self._run(adata, reading, pooled)
        return made

    def _config(self, corpus: str, output: str, **more: Any) -> ScreenConfig:  # noqa: ANN401
        place = {"corpus": corpus, "output": output, "actors": (0, 0)}
        return make_config(ScreenConfig, {**self._options, **place, **more}, _NAME)

    def _run(self, adata: "AnnData", reading: Reading, make: Callable[[Corpus, Path], ResultT]) -> ResultT:
        """Encode the cells into a temporary corpus and return what is made of it."""
        return with_corpus(adata, self._model, self.vocabulary, reading, make)

    def _screened(self, corpus: Corpus, folder: Path, **more: Any) -> ShiftManifest | PrefilterManifest:  # noqa: ANN401
        if self._states:
            more["state_embeddings"] = str(folder / "states.parquet")
            write_states(more["state_embeddings"], self._states)
        made = screen(self._config(corpus.uri, str(folder / "shifts"), **more))
        assert not isinstance(made, ScreenPlan), "a dry run is no option here"
        return made

    def _shifts(self, corpus: Corpus, folder: Path) -> pd.DataFrame:
        made = self._screened(corpus, folder)
        table = _table(made.parts, folder / "shifts")
        table.attrs["counts"] = _counts(corpus, made)
        if isinstance(made, PrefilterManifest):
            table.attrs["genes"] = pd.read_parquet(folder / "shifts" / GENE_TABLE).to_dict("list")
            table.attrs["report"] = made.report
        return table

    def _effects(self, corpus: Corpus, folder: Path) -> pd.DataFrame:
        made = self._screened(corpus, folder, effects=True)
        assert isinstance(made, ShiftManifest), "there are no estimates of effects"
        table = _table(made.effect_parts, folder / "shifts")
        table.attrs["counts"] = _counts(corpus, made)
        return table

    def _embeddings(self, corpus: Corpus, folder: Path) -> Embeddings:
        config, output = self._config("", ""), str(folder / "embeddings")
        shared = {name: getattr(config, name) for name in _SHARED}
        embed_cells(EmbedConfig(corpus=corpus.uri, model=config.model, output=output, actors=(0, 0), **shared))
        return Embeddings.open(output)


def _as_list(name: str, value: Any) -> Any:  # noqa: ANN401
    """Let one gene or state stand where several may."""
    return (value,) if name in _LISTS and isinstance(value, str) else value


def _vocabulary(given: str | GeneVocabulary | None, own: GeneVocabulary | None, model: str) -> GeneVocabulary:
    if isinstance(given, str):
        given = GeneVocabulary.load(given)
    if (found := given or own) is None:
        fix = "Give its vocabulary: jobs.build_vocabulary --from-geneformer makes one."
        raise InputError(model, "the genes of its tokens must be known", f"no {schema.VOCABULARY}", fix)
    return found


def _table(parts: Sequence[PartRecord], directory: Path) -> pd.DataFrame:
    tables = [read_rows(part.uri_in(str(directory)), 0, part.rows) for part in parts]
    table: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return table


def _counts(corpus: Corpus, made: ShiftManifest | PrefilterManifest) -> dict[str, Any]:
    """Return what was left out on the way, as plain values."""
    source, counts = corpus.manifest.sources[0], Counter[str]()
    lacking = made.lacking if isinstance(made, ShiftManifest) else None
    for part in made.parts:
        counts.update(part.counts)
    return {
        "cells": source.cells,
        "cells left out": {reason: number for reason, number in (source.dropped | made.skipped).items() if number},
        "columns of the matrix": source.genes.columns,
        "columns without a gene of the vocabulary": source.genes.unknown + source.genes.without_median,
        DOES_NOT_APPLY: counts[DOES_NOT_APPLY],
        "cells that lack a gene": {} if lacking is None else dict(lacking.genes),
        "warnings": list(source.warnings),
    }
