"""`Geneformer`: cells of an AnnData to token rows to embeddings, in this process, without Ray.

Counts are read, checked and encoded by `cellray.data.memory_corpus`, rows embedded by `cellray.infer.embed`.
"""

import logging
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.compat.helical.config import GeneformerConfig
from cellray.compat.official_files import model_directory, model_vocabulary
from cellray.compat.token_table import TokenizedCells, cells_of, save_dataset, token_rows
from cellray.compat.wording import HELICAL, in_words_of
from cellray.data.collate import TokenRows
from cellray.data.corpora.corpus import Corpus
from cellray.data.memory_corpus import Reading, corpus_of
from cellray.errors import InputError, listing
from cellray.infer.embed import PER_GENE, embed_rows
from cellray.infer.replicas import TOKEN_BUDGET
from cellray.model.device import compute_device, is_accelerator
from cellray.model.encoder import load_encoder
from cellray.model.pooling import check_pooling, is_gene_token
from cellray.models import open_model
from cellray.vocabulary import GeneVocabulary

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

Genes = list["pd.Series[Any]"]
_AT_ONCE = 1024  # cells whose genes' embeddings are made before they become tables


class Geneformer:
    """A model that embeds cells.

    Parameters
    ----------
    configurer, model_config
        Its options, by either name.

    Raises
    ------
    InputError
        The model or its dictionaries are not there, it has no such layer or embedding, or there is no such device.
    """

    @in_words_of(HELICAL)
    def __init__(
        self, configurer: GeneformerConfig | None = None, *, model_config: GeneformerConfig | None = None
    ) -> None:
        if configurer is not None and model_config is not None:
            raise InputError("Geneformer", "takes one configuration", "configurer and model_config", "Give one.")
        self.configurer = configurer or model_config or GeneformerConfig()
        options = self.configurer
        model, _ = open_model(model_directory(options.model_name, options.models))
        given = None if options.vocabulary is None else GeneVocabulary.load(options.vocabulary)
        self.vocabulary = model_vocabulary(model, given)
        model.require_vocabulary(self.vocabulary, "the vocabulary", 0)
        check_pooling(options.emb_mode, self.vocabulary)
        self.device = compute_device(gpu=options.device != "cpu", option="device")
        self._encoder = load_encoder(model, options.emb_layer, self.device)
        self._gene_v = is_gene_token(self.vocabulary, self.device)

    @property
    def config(self) -> dict[str, Any]:
        """The options by name."""
        return self.configurer.config

    @property
    def input_size(self) -> int:
        """Most tokens of a row."""
        return min(self.vocabulary.input_size, self._encoder.input_size)

    @in_words_of(HELICAL)
    def process_data(
        self,
        adata: "AnnData",
        gene_names: str = "index",
        output_path: str | None = None,
        use_raw_counts: bool = True,
        *,
        matrix: str = "X",
    ) -> TokenizedCells:
        """Encode the cells of an AnnData.

        Parameters
        ----------
        adata
            Raw counts, cells x genes.
        gene_names
            `index` or the var column with the genes: Ensembl IDs, with versions or without, and symbols if the
            dictionaries know them.
        output_path
            Also write an official dataset here; its suffix becomes `.dataset`.
        use_raw_counts
            True or False: counts are checked in any case, for ranks of anything else would mean other genes.
        matrix
            Of ours: where the raw counts are, `X`, `raw` or `layers/NAME`.

        Returns
        -------
        TokenizedCells
            Cells with something to encode, in the order of the AnnData (`source_row` says which; the log how many are
            left out).

        Raises
        ------
        InputError
            This is no AnnData, these are no raw counts, hardly a gene is known, or an obs column is missing.
        """
        _check_anndata(adata)
        names = _kept(adata, self.configurer.custom_attr_name_dict or {})
        reading = Reading(matrix, gene_names, tuple(names))
        with TemporaryDirectory(prefix="cellray-") as folder:
            corpus = corpus_of(adata, self.vocabulary, f"{folder}/corpus", reading, self.input_size)
            _tell_lost(corpus)
            if output_path is not None:
                save_dataset(corpus, str(output_path), names)
            return cells_of(corpus, names)

    def get_embeddings(
        self,
        dataset: Any,  # noqa: ANN401  # of any library
        output_attentions: bool = False,
        output_genes: bool = False,
    ) -> NDArray[np.float32] | Genes | tuple[NDArray[np.float32] | Genes, list[list[str]]]:
        """Embed encoded cells.

        Parameters
        ----------
        dataset
            What `process_data` returned, or anything with a column `input_ids`, as a `datasets.Dataset`.
        output_attentions
            False: attentions of all cells do not fit into memory; `jobs.attention` writes them.
        output_genes
            Also return the genes of each cell, in the order of their tokens.

        Returns
        -------
        NDArray[np.float32] or list of pd.Series
            For `cell` and `cls` a row for each cell of the dataset, shape (cells, hidden); for `gene` a series for
            each cell, its index the cell's genes, its values their embeddings, shape (hidden,).

        Raises
        ------
        InputError
            The dataset is of another vocabulary, or attentions are asked for.
        """
        if output_attentions:
            fix = "Use jobs.attention (--layers, --heads, --top-k), which writes them cell by cell."
            raise InputError("get_embeddings(output_attentions=...)", "must be False", "True", fix)
        rows = token_rows(dataset, self.vocabulary, self.input_size)
        genes = self._genes(rows) if output_genes or self.configurer.emb_mode == PER_GENE else []
        found = self._per_gene(rows, genes) if self.configurer.emb_mode == PER_GENE else self._per_cell(rows)
        return (found, genes) if output_genes else found

    def _per_cell(self, rows: TokenRows) -> NDArray[np.float32]:
        embedded = self._embed(rows)
        return np.stack(embedded) if embedded else np.empty((0, self._encoder.width), np.float32)

    def _per_gene(self, rows: TokenRows, genes: list[list[str]]) -> Genes:
        found: Genes = []
        for start in range(0, len(genes), _AT_ONCE):
            stop = min(start + _AT_ONCE, len(genes))
            low, high = rows.offsets[start], rows.offsets[stop]
            some = TokenRows(rows.input_ids[low:high], rows.offsets[start : stop + 1] - low)
            for names, embedding_md in zip(genes[start:stop], self._embed(some), strict=True):
                found.append(pd.Series(list(embedding_md), index=names, dtype=object))
        return found

    def _embed(self, rows: TokenRows) -> list[NDArray[np.float32]]:
        fastest = TOKEN_BUDGET["gpu" if is_accelerator(self.device) else "cpu"]
        budget = min(fastest, self.configurer.batch_size * self.input_size)
        return embed_rows(self._encoder, rows, self.configurer.emb_mode, self._gene_v, budget)

    def _genes(self, rows: TokenRows) -> list[list[str]]:
        """Return the names of each cell's gene tokens, in their order."""
        name_of = self.vocabulary.gene_of_token
        cells = np.split(rows.input_ids, rows.offsets[1:-1])
        return [[name_of[token] for token in cell.tolist() if token in name_of] for cell in cells]


def _check_anndata(given: object) -> None:
    from anndata import AnnData

    if not isinstance(given, AnnData):
        shown = repr(given) if isinstance(given, str) else type(given).__name__
        raise InputError("process_data(adata=...)", "must be an AnnData", shown, "Give anndata.read_h5ad(...).")


def _kept(adata: "AnnData", asked: Mapping[str, str]) -> dict[str, str]:
    """Return the obs columns to keep and what the dataset calls them.

    Raises
    ------
    InputError
        Neither word of a pair is an obs column.
    """
    found = {}
    for name, column in asked.items():
        if column not in adata.obs and name not in adata.obs:
            there = f"{column!r}; obs has {listing(adata.obs.columns, 30)}"
            raise InputError("custom_attr_name_dict", "its values are obs columns", there, "Correct the names.")
        old, new = (column, name) if column in adata.obs else (name, column)
        found[old] = new
    return found


def _tell_lost(corpus: Corpus) -> None:
    source = corpus.manifest.sources[0]
    if (genes := source.genes).unknown:
        lost, told = f"{genes.unknown:,} of {genes.columns:,}", genes.ids_from
        logger.warning("%s genes (%s) are unknown to the vocabulary and left out", lost, told)
    if source.kept < source.cells:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in source.dropped.items() if n)
        logger.warning("%d of %d cells are left out: %s", source.cells - source.kept, source.cells, reasons)
