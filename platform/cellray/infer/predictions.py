"""Finished predictions as people use them: a table, an AnnData file."""

import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from cellray import prediction_schema, schema, storage
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.errors import InputError
from cellray.infer.predict import free_names
from cellray.infer.results import MARKS, sources_obs
from cellray.model.heads import HeadSpec
from cellray.prediction_schema import PredictionManifest

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
    """Write an AnnData file with every cell of the corpus's sources, in their order, and the predictions in `obs`.

    Cells that tokenization dropped have none; `obs["cellray_predicted"]` tells them apart. A column of the sources that
    bears a prediction's name gets `obs.` in front. `/` in names of classes becomes `|`, as HDF5 needs it.

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
    predicted = _placed(predictions, corpus)
    obs = sources_obs(corpus)
    obs = obs.rename(columns=free_names(list(obs.columns), [*predicted, PREDICTED]))
    for name, values in predicted.items():
        obs[name] = values
    adata = AnnData(obs=obs)
    kept = ("format_version", "model", "model_digest", "corpus", "corpus_digest", "software")
    adata.uns["cellray"] = {name: getattr(manifest, name) for name in kept} | {"heads": json.dumps(manifest.heads)}
    with storage.atomic_file(storage.absolute(uri)) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    return len(obs), int(obs[PREDICTED].sum())


def _placed(predictions: Predictions, corpus: Corpus) -> dict[str, Any]:
    """Return the columns of the predictions for all cells of the sources, as pandas takes them."""
    sizes = [source.cells for source in corpus.manifest.sources]
    first = np.cumsum([0, *sizes])
    table = predictions.table()
    source = np.repeat(
        [corpus.manifest.parts[part.source].source for part in predictions.manifest.parts],
        [part.rows for part in predictions.manifest.parts],
    )
    place = first[source] + table[schema.SOURCE_ROW].to_numpy()
    placed: dict[str, Any] = {}
    for spec in predictions.heads:
        for field in prediction_schema.prediction_fields({spec.name: spec.classes}):
            name = field.name.replace("/", "|")
            if name in placed:
                fix = "Rename a class when fine-tuning, or leave out --h5ad."
                raise InputError("--h5ad", "each prediction needs a column of its own", f"{name!r} twice", fix)
            if pa.types.is_string(field.type):
                labels = np.full(first[-1], None, object)
                labels[place] = table[field.name].to_numpy()
                placed[name] = pd.Categorical(labels, categories=list(spec.classes))
            else:
                placed[name] = np.full(first[-1], np.nan, np.float32)
                placed[name][place] = table[field.name].to_numpy()
    placed[PREDICTED] = np.zeros(first[-1], bool)
    placed[PREDICTED][place] = True
    return placed
