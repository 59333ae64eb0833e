"""Finished predictions as people use them: a table, an AnnData file."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.errors import InputError, listing
from cellray.infer.predict import free_names
from cellray.infer.results import MARKS, sources_obs
from cellray.model.heads import HeadSpec
from cellray.prediction_schema import PredictionManifest, hdf5_name, prediction_fields, probability_column

logger = logging.getLogger(__name__)

PREDICTED = MARKS["predictions"]


@dataclass(frozen=True)
class Predictions:
    """Predictions, opened for reading.

    Attributes
    ----------
    uri
        Their directory.
    manifest
        What they were made from.
    """

    uri: str
    manifest: PredictionManifest

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open the predictions at a URI.

        Raises
        ------
        InputError
            There are no finished predictions.
        """
        uri = storage.absolute(uri)
        return cls(uri, PredictionManifest.load(uri))

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        """What was told."""
        return tuple(HeadSpec.from_json(head, self.uri) for head in self.manifest.heads)

    def table(self) -> pa.Table:
        """Return all rows: cells and tokens in the corpus's order, genes by token id."""
        return pa.concat_tables(read_rows(p.uri_in(self.uri), 0, p.rows) for p in self.manifest.parts if p.rows)


def write_predictions_h5ad(predictions: Predictions, uri: str) -> tuple[int, int]:
    """Write an AnnData file with every cell of the corpus's sources, in their order, and the predictions.

    Labels, numbers and the probability of each class are columns of `obs`; the probabilities of a head `NAME` are also
    `obsm["cellray_NAME_probabilities"]`, whose columns `uns["cellray"]["NAME_classes"]` names. Cells that tokenization
    dropped have none; `obs["cellray_predicted"]` tells them apart. A column of the sources that bears a prediction's
    name gets `obs.` in front. HDF5 keys cannot hold `/`: in names of columns it becomes `|`, which the log says, and
    `uns["cellray"]["renamed"]` (JSON) holds what each such column is called in the predictions. Names of classes in
    `NAME_classes` and in the labels are as they are.

    Returns
    -------
    tuple[int, int]
        Cells in the file, and how many of them have a prediction.
    """
    from anndata import AnnData

    manifest = predictions.manifest
    if manifest.level != "cell":
        raise InputError("--h5ad", "needs predictions of cells", f"--level {manifest.level}", "Use --level cell.")
    corpus = Corpus.open(manifest.corpus)
    if corpus.manifest.digest != manifest.corpus_digest:
        raise InputError(corpus.uri, "the corpus must be the one that was predicted", "another", "Predict it again.")
    predicted, renamed = _placed(predictions, corpus)
    obs = sources_obs(corpus)
    obs = obs.rename(columns=free_names(list(obs.columns), [*predicted, PREDICTED]))
    adata = AnnData(obs=pd.concat([obs, pd.DataFrame(predicted, index=obs.index)], axis=1))
    kept = ("format_version", "model", "model_digest", "corpus", "corpus_digest", "software")
    about = {name: getattr(manifest, name) for name in kept}
    about |= {"heads": json.dumps(manifest.heads), "renamed": json.dumps(renamed)}
    for spec in predictions.heads:
        if spec.classes:
            name = hdf5_name(spec.name)
            columns = [hdf5_name(probability_column(spec.name, label)) for label in spec.classes]
            adata.obsm[f"cellray_{name}_probabilities"] = np.stack([predicted[each] for each in columns], axis=1)
            about[f"{name}_classes"] = np.array(spec.classes, object)
    adata.uns["cellray"] = about
    with storage.atomic_file(storage.absolute(uri)) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    return len(obs), int(adata.obs[PREDICTED].sum())


def placed_columns(predictions: Predictions, place: NDArray[np.int64], cells: int) -> dict[str, Any]:
    """Return the predictions of cells, as pandas takes them: labels as categories in the model's order.

    Parameters
    ----------
    place
        For each row of the predictions, which of the cells it is of. Shape (rows,).
    cells
        How many there are; those without a prediction have missing values.
    """
    table = predictions.table()
    placed: dict[str, Any] = {}
    for spec in predictions.heads:
        for field in prediction_fields({spec.name: spec.classes}):
            if pa.types.is_string(field.type):
                labels = np.full(cells, None, object)
                labels[place] = table[field.name].to_numpy()
                placed[field.name] = pd.Categorical(labels, categories=list(spec.classes))
            else:
                placed[field.name] = np.full(cells, np.nan, np.float32)
                placed[field.name][place] = table[field.name].to_numpy()
    return placed


def _placed(predictions: Predictions, corpus: Corpus) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the columns of the predictions for all cells of the sources, and which of them are renamed for the file.

    Of the latter, the column in the file and its name in the predictions.
    """
    sizes = [source.cells for source in corpus.manifest.sources]
    first = np.cumsum([0, *sizes])
    source = np.repeat(
        [corpus.manifest.parts[part.source].source for part in predictions.manifest.parts],
        [part.rows for part in predictions.manifest.parts],
    )
    place = first[source] + predictions.table()[schema.SOURCE_ROW].to_numpy()
    placed: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for column, values in placed_columns(predictions, place, int(first[-1])).items():
        placed[_free_key(column, placed, renamed)] = values
    placed[PREDICTED] = np.zeros(first[-1], bool)
    placed[PREDICTED][place] = True
    if renamed:
        logger.info("columns of the .h5ad have | where names have /, which HDF5 cannot hold: %s", listing(renamed))
    return placed, renamed


def _free_key(column: str, placed: Mapping[str, Any], renamed: dict[str, str]) -> str:
    """Return what a column is called in the file, and keep it if that is another name."""
    name = hdf5_name(column)
    if name in placed:
        fix = "Rename a class when fine-tuning, or leave out --h5ad."
        raise InputError("--h5ad", "each prediction needs a column of its own", f"{name!r} twice", fix)
    if name != column:
        renamed[name] = column
    return name
