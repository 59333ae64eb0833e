"""Embeddings as tables: of cells with labels, of genes over cells, summed up. Numpy and pandas only."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray import schema
from cellray.data.corpora.corpus import read_rows
from cellray.errors import InputError, listing
from cellray.infer.results import Embeddings
from cellray.vocabulary import GeneVocabulary

_MEAN: Callable[[NDArray[np.float32]], NDArray[np.float64]] = lambda vectors_nd: vectors_nd.mean(0, dtype=np.float64)  # noqa: E731
SUMMARIES: dict[str, Callable[[NDArray[np.float32]], NDArray[np.floating]]] = {
    "mean": _MEAN,
    "median": lambda vectors_nd: np.median(vectors_nd, axis=0),
    "exact_mean": _MEAN,
    "exact_median": lambda vectors_nd: np.median(vectors_nd, axis=0),
}
"""Name of a summary to what it makes of the embeddings of cells. All are exact."""


@dataclass(frozen=True)
class Table:
    """Embeddings and what stands beside them.

    Attributes
    ----------
    vectors_nd
        Rows x hidden, float32.
    labels
        A row each.
    index
        Names of the rows; None: their numbers.
    """

    vectors_nd: NDArray[np.float32]
    labels: pd.DataFrame = field(default_factory=pd.DataFrame)
    index: list[str] | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """Columns 0, 1, ... of the embedding, then the labels."""
        vectors = pd.DataFrame(self.vectors_nd, index=self.index)
        return vectors if self.labels.empty else pd.concat([vectors, self.labels], axis=1)

    def summarised(self, name: str) -> "Table":
        """Return the summary over all rows, a row with its name."""
        return Table(SUMMARIES[name](self.vectors_nd)[None].astype(np.float32), index=[name])


def vectors_of(frame: pd.DataFrame, labels: Collection[str]) -> NDArray[np.float32]:
    """Return the embeddings of a table, fresh or read from its CSV, where columns are `"0"`, `"1"`, ... Rows x hidden.

    Raises
    ------
    InputError
        It has no such columns.
    """
    places = {int(str(name)): i for i, name in enumerate(frame) if str(name).isdecimal() and name not in labels}
    if not places or sorted(places) != list(range(len(places))):
        found = listing(frame.columns)
        raise InputError("embs", "must have columns 0, 1, ... with the embedding", found, "Give extract_embs' table.")
    return frame.iloc[:, [places[i] for i in range(len(places))]].to_numpy(np.float32)


def mean_of_genes(embeddings: Embeddings, vocabulary: GeneVocabulary) -> Table:
    """Return the mean over cells of each gene's embedding, by token id; sums are float64, part after part."""
    total_vd = np.zeros((len(vocabulary), embeddings.manifest.width))
    count_v = np.zeros(len(vocabulary), np.int64)
    for part in embeddings.manifest.parts:
        rows = read_rows(part.uri_in(embeddings.uri), 0, part.rows, [schema.GENE, schema.EMBEDDING])
        token_m = np.array([vocabulary.genes[gene] for gene in rows[schema.GENE].to_pylist()], np.int64)
        np.add.at(total_vd, token_m, embeddings.matrix(rows))
        count_v += np.bincount(token_m, minlength=len(vocabulary))
    seen = np.flatnonzero(count_v)
    names = [vocabulary.gene_of_token[token] for token in seen.tolist()]
    return Table((total_vd[seen] / count_v[seen, None]).astype(np.float32), index=names)
