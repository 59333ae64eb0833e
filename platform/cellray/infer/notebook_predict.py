"""Predictions for an AnnData in a notebook: the job's own code, in this process, without Ray."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cellray import schema
from cellray.config import make_config
from cellray.data.corpora.corpus import Corpus
from cellray.data.memory_corpus import Reading
from cellray.infer.notebook_cells import check_arguments, with_corpus
from cellray.infer.predict import PredictConfig, chosen_heads, predict_cells
from cellray.infer.predictions import Predictions, placed_columns
from cellray.model.annotator_directory import require_heads
from cellray.models import open_model

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

NAME = "cellray.predict"
_OPTIONS = ("level", "token_budget", "cells_per_part", "gpus_per_actor", "threads", "tracking_uri")
_READING = ("matrix", "gene_ids")


def predict(adata: "AnnData", model: str, **options: Any) -> pd.DataFrame:  # noqa: ANN401  # named below
    """Tell labels and numbers of the cells of an AnnData with a fine-tuned model, as `jobs.predict` does.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    model
        A model directory from `jobs.finetune` or `jobs.tune`, or models:/NAME@ALIAS.
    options
        `matrix`: where the raw counts are, `X` (default), `raw` or `layers/NAME`. `gene_ids`: var column with the gene
        ids, or `index`; default: `ensembl_id` if there is one, else the index. `level`: `cell`, `gene` or `token`;
        default: `cell` if the model tells something of cells, else `gene`. Of the machine: `token_budget` [tokens],
        `cells_per_part` [cells], `threads`, `gpus_per_actor` (1: compute on a GPU). `tracking_uri`: the MLflow that
        knows models:/ names.

    Returns
    -------
    pd.DataFrame
        At level `cell` a row for each cell, in the order and with the names of `adata.obs_names`. A classification
        `NAME` gives `NAME` (the likeliest class; categories in the model's order), `NAME_probability` (its probability)
        and `NAME.probability.CLASS` for each class; a regression gives `NAME`, in its own unit. Cells with nothing to
        encode have missing values; the log says how many. At the other levels the job's table: a row for each gene over
        all cells, or for each gene of each cell.

    Raises
    ------
    InputError
        An argument is unknown, the model is not fine-tuned or tells nothing at this level, these are no raw counts, or
        hardly a gene is known.

    Examples
    --------
    >>> adata.obs["cell_type"] = predict(adata, "annotator")["cell_type"]
    """
    check_arguments(NAME, options, ("adata", "model", *_READING, *_OPTIONS))
    reading = Reading(options.pop("matrix", "X"), options.pop("gene_ids", None))
    directory, reference = open_model(model, options.get("tracking_uri"))
    places = {"model": reference.uri, "actors": (0, 0), "obs_columns": ()}
    asked = make_config(PredictConfig, {**options, **places, "corpus": "", "output": ""}, NAME)
    require_heads(directory)
    chosen_heads(asked, directory)  # fails before the cells are encoded
    vocabulary = directory.vocabulary
    assert vocabulary is not None, "a fine-tuned model of ours has one"

    def told(corpus: Corpus, folder: Path) -> pd.DataFrame:
        output = str(folder / "predictions")
        made = predict_cells(asked.model_copy(update={"corpus": corpus.uri, "output": output}))
        predictions = Predictions.open(output)
        if made.level != "cell":
            table: pd.DataFrame = predictions.table().to_pandas()
            return table
        place = predictions.table()[schema.SOURCE_ROW].to_numpy()
        if lost := adata.n_obs - len(place):
            logger.warning("%d of %d cells have nothing to encode: their predictions are missing", lost, adata.n_obs)
        return pd.DataFrame(placed_columns(predictions, place, adata.n_obs), index=adata.obs_names)

    return with_corpus(adata, directory, vocabulary, reading, told)
