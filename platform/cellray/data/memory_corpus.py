"""An AnnData in memory as a token corpus in a folder: read, checked and encoded by the code that reads files.

Runs in this process, without Ray. What becomes of the folder is the caller's business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import h5py
import pandas as pd
import pyarrow as pa

from cellray import schema, storage
from cellray.data import gene_ids
from cellray.data.corpora.corpus import Corpus
from cellray.data.parts import PartWriter, Unit, make_part
from cellray.data.plan import describe_open, wanted_kinds
from cellray.data.publishing import publish_manifest
from cellray.data.sources.anndata_store import AnnDataSource
from cellray.data.tokenization import Job, TokenizeConfig, TokenizeOptions, TokenizeWorker, corpus_manifest, plan_units
from cellray.errors import InputError, listing, nearest
from cellray.vocabulary import GeneVocabulary

if TYPE_CHECKING:
    from anndata import AnnData

SUBJECT = "the AnnData"
"""What messages and manifests call it."""


@dataclass(frozen=True)
class Reading:
    """How an AnnData is read; see `cellray.data.tokenization.TokenizeConfig`.

    Attributes
    ----------
    matrix
        Where the raw counts are: `X`, `raw` or `layers/NAME`.
    gene_ids
        Var column with the gene ids, or `index`; None: `ensembl_id` if there is one, else the index.
    obs_columns
        Those to keep.
    """

    matrix: str = "X"
    gene_ids: str | None = None
    obs_columns: tuple[str, ...] = ()


class AnnDataInMemory(AnnDataSource):
    """An AnnData object as an open source of counts; of its tables and matrices only what is asked for is copied."""

    def __init__(self, adata: "AnnData", reading: Reading) -> None:
        matrices = (["X"] if adata.X is not None else []) + (["raw"] if adata.raw is not None else [])
        self._matrices = [*matrices, *(f"layers/{name}" for name in adata.layers)]
        if reading.matrix not in self._matrices:
            found = f"no {reading.matrix!r}; it holds {', '.join(self._matrices) or 'none'}"
            raise InputError(SUBJECT, "the matrix of raw counts must exist", found, "Correct matrix.")
        root = h5py.File(uuid4().hex, "w", driver="core", backing_store=False)
        _write(root, adata, reading)
        super().__init__(SUBJECT, reading.matrix, root, root.close)

    def matrices(self) -> list[str]:
        """Names of the matrices the object holds."""
        return self._matrices


def _write(root: h5py.File, adata: "AnnData", reading: Reading) -> None:
    """Lay out the wanted parts as in a file."""
    from anndata.io import write_elem

    raw = reading.matrix == "raw"
    owner: Any = adata.raw if raw else adata
    counts = adata.layers[reading.matrix.removeprefix("layers/")] if reading.matrix.startswith("layers/") else owner.X
    _require_gene_column(reading.gene_ids, [str(name) for name in owner.var.columns])
    own = {gene_ids.ENSEMBL_COLUMN, reading.gene_ids}
    obs = adata.obs[[name for name in adata.obs.columns if name in (*reading.obs_columns, schema.FILTER_PASS)]]
    var = owner.var[[name for name in owner.var.columns if name in own]]
    write_elem(root, "obs", _plain(obs))
    write_elem(root, "var", _plain(var))
    if raw:
        write_elem(root, "raw/var", _plain(var))
    write_elem(root, "raw/X" if raw else reading.matrix, counts.to_memory() if hasattr(counts, "to_memory") else counts)


def _require_gene_column(column: str | None, there: list[str]) -> None:
    """Check that var has the column, while all of its columns are known: only those wanted are laid out."""
    if column is not None and column not in ("index", *there):
        near = nearest(column, there)
        fix = "Correct gene_ids (a var column, or index)."
        meant = f" (did you mean {near!r}?)" if near else ""
        raise InputError(SUBJECT, f"var must have the column {column!r}", f"columns {listing(there, 30)}{meant}", fix)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that files can hold: text as categories, names as text."""
    made: Mapping[str, Any] = {
        str(name): values.astype("string").astype(object).astype("category")
        if values.dtype == object or isinstance(values.dtype, pd.StringDtype)
        else values.array
        for name, values in table.items()
    }
    return pd.DataFrame(made, index=pd.Index(table.index.astype(str).to_numpy(object)))


def corpus_of(adata: "AnnData", vocabulary: GeneVocabulary, output: str, reading: Reading, input_size: int) -> Corpus:
    """Encode an AnnData as tokenization does and publish the corpus.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    vocabulary
        Of the model that will read the corpus.
    output
        Folder of the corpus.
    input_size
        Tokens of a row.

    Raises
    ------
    InputError
        These are no raw counts, hardly a gene is known, an obs column is missing, or no cell is left.
    """
    config = TokenizeConfig(
        source=(SUBJECT,),
        vocabulary=SUBJECT,
        output=output,
        obs_columns=reading.obs_columns,
        matrix=reading.matrix,
        gene_ids=reading.gene_ids,
    )
    with AnnDataInMemory(adata, reading) as source:
        kinds = wanted_kinds(source, config)
        mapping = gene_ids.map_columns(*gene_ids.column_names(source, reading.gene_ids), vocabulary, SUBJECT)
        plan = describe_open(source, config, "anndata", storage.FileStamp(0, "in memory"), kinds, mapping)
        options = TokenizeOptions(vocabulary, reading.matrix, reading.gene_ids, None, input_size, kinds)
        worker = TokenizeWorker(options)

        def encode(unit: Unit, open_part: Callable[[pa.Schema], PartWriter]) -> None:
            worker.encode(source, unit, mapping, None, open_part(worker.schema))

        job = Job(output, [plan], [], options, plan_units([plan], options, max(1, plan.n_cells)))
        manifest = corpus_manifest(job, [make_part(unit, encode, output) for unit in job.units], {})
    if not manifest.rows:
        dropped = ", ".join(f"{n:,} ({reason})" for reason, n in manifest.sources[0].dropped.items() if n)
        raise InputError(SUBJECT, "there must be a cell to encode", f"none; dropped: {dropped}", "Check the genes.")
    storage.write_bytes(storage.join(output, schema.VOCABULARY), vocabulary.to_json())
    publish_manifest(output, manifest)
    return Corpus.open(output)
