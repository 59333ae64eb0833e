"""Finished embeddings as people use them: a table, an AnnData file, a picture."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.corpora import hf_import
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.sources.anndata_store import open_hdf5
from cellray.data.sources.contract import open_source, stamp_of
from cellray.errors import InputError
from cellray.model.pooling import CELL_POOLINGS
from cellray.plots import umap_png
from cellray.schema import EmbeddingManifest, SourceRecord

OBSM_KEY = "X_cellray"
EMBEDDED = "cellray_embedded"
MARKS = {"embeddings": EMBEDDED, "predictions": "cellray_predicted"}
"""The obs column that tells, in an .h5ad of ours, which cells of the sources have an embedding or a prediction."""
SOURCE = "cellray_source"


@dataclass(frozen=True)
class Embeddings:
    """Cell embeddings, opened for reading.

    Attributes
    ----------
    uri
        Their directory.
    manifest
        What they were made from.
    """

    uri: str
    manifest: EmbeddingManifest

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open the embeddings at a URI.

        Raises
        ------
        InputError
            There are no finished embeddings.
        """
        uri = storage.absolute(uri)
        return cls(uri, EmbeddingManifest.load(uri))

    def table(self) -> pa.Table:
        """Return all rows, in the corpus's order."""
        parts = (p for p in self.manifest.parts if p.rows)
        return pa.concat_tables(read_rows(p.uri_in(self.uri), 0, p.rows) for p in parts)

    def matrix(self, table: pa.Table) -> NDArray[np.float32]:
        """Return the embeddings of a table of theirs. Shape (rows, hidden)."""
        chunks = [chunk.flatten().to_numpy() for chunk in table[schema.EMBEDDING].chunks]
        return np.concatenate(chunks).reshape(-1, self.manifest.width)

    def require_cells(self, option: str) -> None:
        """Check that there is one embedding a cell.

        Raises
        ------
        InputError
            These are gene embeddings.
        """
        if self.manifest.pooling not in CELL_POOLINGS:
            raise InputError(
                option, "needs one embedding a cell", f"--pooling {self.manifest.pooling}", "Use --pooling cell or cls."
            )


def check_h5ad_target(uri: str, corpus_uri: str, made: str = "embeddings") -> None:
    """Check, before the work, that an .h5ad can be written: over nothing but an earlier one, from unchanged sources.

    Parameters
    ----------
    uri, corpus_uri
        The file and the corpus whose cells it will hold.
    made
        What it will hold of them, from `MARKS`.

    Raises
    ------
    InputError
        A file of another origin is there, or a source of the corpus has changed.
    """
    for record in Corpus.open(corpus_uri).manifest.sources:
        require_unchanged(record)
    uri = storage.absolute(uri)
    if storage.exists(uri):
        try:
            file, close = open_hdf5(uri)
            ours = f"obs/{MARKS[made]}" in file
            close()
        except InputError:
            ours = False
        if not ours:
            fix = "Choose another --h5ad."
            raise InputError(uri, f"--h5ad may replace only {made} written before", "another file", fix)


def write_h5ad(embeddings: Embeddings, uri: str) -> tuple[int, int]:
    """Write an AnnData file with every cell of the corpus' sources, in their order.

    `obs` is that of the sources; `obsm["X_cellray"]` holds the embeddings, NaN where tokenization dropped the cell;
    `obs["cellray_embedded"]` tells these apart; with several sources `obs["cellray_source"]` names them. Counts stay in
    the sources: rows correspond one to one, so `adata.obsm["X_cellray"]` can be copied over.

    Returns
    -------
    tuple[int, int]
        Cells in the file, and how many of them have an embedding.
    """
    from anndata import AnnData

    embeddings.require_cells("--h5ad")
    corpus = Corpus.open(embeddings.manifest.corpus)
    if corpus.manifest.digest != embeddings.manifest.corpus_digest:
        raise InputError(corpus.uri, "the corpus must be the one that was embedded", "another", "Embed it again.")
    vectors = [
        np.full((source.cells, embeddings.manifest.width), np.nan, np.float32) for source in corpus.manifest.sources
    ]
    for part in embeddings.manifest.parts:
        table = read_rows(part.uri_in(embeddings.uri), 0, part.rows)
        source = corpus.manifest.parts[part.source].source
        vectors[source][table[schema.SOURCE_ROW].to_numpy()] = embeddings.matrix(table)
    obs = sources_obs(corpus)
    obsm = np.concatenate(vectors)
    obs[EMBEDDED] = ~np.isnan(obsm[:, 0])
    adata = AnnData(obs=obs, obsm={OBSM_KEY: obsm})
    kept = ("format_version", "model", "model_digest", "corpus", "corpus_digest", "layer", "pooling", "software")
    adata.uns["cellray"] = {name: getattr(embeddings.manifest, name) for name in kept}
    with storage.atomic_file(storage.absolute(uri)) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    return len(obs), int(obs[EMBEDDED].sum())


def sources_obs(corpus: Corpus) -> pd.DataFrame:
    """Return the obs tables of all sources in a row, with `cellray_source` if there are several.

    Raises
    ------
    InputError
        A source has changed.
    """
    sources = corpus.manifest.sources
    obs = _plain(pd.concat([_obs(source) for source in sources]))
    if len(sources) > 1:
        names = [source.uri for source in sources]
        cells = [source.cells for source in sources]
        obs[SOURCE] = pd.Categorical(np.repeat(names, cells), categories=list(dict.fromkeys(names)))
    return obs


def _obs(record: SourceRecord) -> pd.DataFrame:
    """Read the obs table of a source that has not changed since it was tokenized."""
    require_unchanged(record)
    if record.format == hf_import.FORMAT:
        return hf_import.read_obs(record.uri)
    with open_source(record.uri, record.matrix) as source:
        columns = {name: source.obs(name, 0, source.n_cells).to_pandas() for name in source.obs_kinds()}
        index = pd.Index(source.cell_names(0, source.n_cells).to_pandas().astype(str))
    return pd.DataFrame({name: values.set_axis(index) for name, values in columns.items()}, index=index)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Give columns of mixed or missing values a type AnnData can write: nullable flags, or categories of text."""
    for name in table.select_dtypes("object").columns:
        values = table[name].dropna()
        flags = values.map(lambda value: isinstance(value, bool)).all() and len(values) > 0
        table[name] = table[name].astype("boolean") if flags else table[name].astype("string").astype("category")
    return table


def require_unchanged(record: SourceRecord) -> None:
    """Check that a source is the one that was tokenized.

    Raises
    ------
    InputError
        It has changed since.
    """
    if stamp_of(record.uri).version != record.version:
        raise InputError(record.uri, "a source may not change after tokenization", "another version", "Tokenize again.")


def draw_umap(embeddings: Embeddings, label: str, uri: str, title: str, max_cells: int = 20_000, seed: int = 0) -> int:
    """Draw the UMAP of at most `max_cells` cells, drawn at random beyond that; return how many were drawn."""
    embeddings.require_cells("--umap")
    table = embeddings.table()
    if table.num_rows > max_cells:
        chosen = np.sort(np.random.default_rng(seed).choice(table.num_rows, max_cells, replace=False))
        table = table.take(pa.array(chosen))
    with storage.atomic_file(storage.absolute(uri)) as path:
        umap_png(embeddings.matrix(table), table[label].to_pandas().rename(label), path, title, seed=seed)
    return int(table.num_rows)
