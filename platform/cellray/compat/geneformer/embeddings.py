"""`EmbExtractor`: embeddings of a dataset's cells, genes or states as tables, by the embedding job."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellray import storage
from cellray.compat.geneformer.cells import CellChoice, choose_rows, chosen_cells, open_cells
from cellray.compat.geneformer.files import output_path, write_csv
from cellray.compat.geneformer.pooled import SUMMARIES, Table, mean_of_genes, vectors_of
from cellray.compat.geneformer.running import COMMON, ONLY_MEAN, run_options
from cellray.compat.geneformer.states import CellStates
from cellray.compat.official_files import model_directory
from cellray.compat.options import check_options, instance, one_of, whole_number
from cellray.compat.wording import GENEFORMER, in_words_of
from cellray.config import make_config
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.infer.embed import PER_GENE, EmbedConfig, embed_cells
from cellray.infer.results import Embeddings
from cellray.infer.states import write_states

if TYPE_CHECKING:
    from torch import Tensor

EXACT = ("exact_mean", "exact_median")


@dataclass(frozen=True)
class EmbExtractor:
    """Embeds cells of a dataset.

    Parameters
    ----------
    model_type, num_classes, nproc, forward_batch_size, model_version
        Need nothing: the model's directory tells its kind, and work is cut by tokens.
    emb_mode
        `cls`, `cell` or `gene`.
    cell_emb_style, gene_emb_style
        `mean_pool`.
    filter_data
        Column to the values that are wanted.
    max_ncells
        Cells drawn at random; None: all.
    emb_layer
        -1: the second to last hidden state, 0: the last.
    emb_label
        Columns to put beside the embeddings.
    labels_to_plot
        Columns of `emb_label` that colour pictures.
    summary_stat
        None; `mean` or `median` over cells (exact here); `exact_mean`, `exact_median`: the table of cells is written,
        the summary returned.
    save_tdigest
        False: there are no digests to save.
    token_dictionary_file
        Of datasets without a vocabulary: released `token_dictionary*.pkl`, or a `vocabulary.json` of ours.
    job_options
        Of ours: further options of `jobs.embed_cells`, as {"actors": (1, 8), "gpus_per_actor": 1}.

    Raises
    ------
    InputError
        An option has a value that cannot be had here.
    """

    model_type: str = "Pretrained"
    num_classes: int = 0
    emb_mode: str = "cls"
    cell_emb_style: str = "mean_pool"
    gene_emb_style: str = "mean_pool"
    filter_data: Mapping[str, Any] | None = None
    max_ncells: int | None = 1000
    emb_layer: int = -1
    emb_label: Sequence[str] | None = None
    labels_to_plot: Sequence[str] | None = None
    forward_batch_size: int = 100
    nproc: int = 4
    summary_stat: str | None = None
    save_tdigest: bool = False
    model_version: str = "V2"
    token_dictionary_file: str | Path | None = None
    job_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_options("EmbExtractor", vars(self), _RULES)
        if unknown := set(self.labels_to_plot or ()) - set(self.emb_label or ()):
            rule, fix = "must be some of emb_label", "List them there, too."
            raise InputError("EmbExtractor(labels_to_plot=...)", rule, ", ".join(sorted(unknown)), fix)
        if self.emb_mode == PER_GENE and (self.emb_label or "median" in str(self.summary_stat)):
            rule, fix = "goes with emb_mode cell or cls", "A row of genes is a mean over cells: leave them out."
            raise InputError("EmbExtractor(emb_label, summary_stat='median')", rule, "emb_mode='gene'", fix)

    @in_words_of(GENEFORMER)
    def extract_embs(
        self,
        model_directory: str | Path,
        input_data_file: str | Path,
        output_directory: str | Path,
        output_prefix: str,
        output_torch_embs: bool = False,
        cell_state: Mapping[str, str] | None = None,
    ) -> "pd.DataFrame | tuple[pd.DataFrame, Tensor] | Tensor":
        """Embed a dataset and write `DIRECTORY/PREFIX.csv`.

        Parameters
        ----------
        model_directory
            A model directory, ours or a released one, a URI, `models:/NAME@ALIAS`, or a released name.
        input_data_file
            A dataset, or a token corpus of ours.
        output_directory, output_prefix
            Where the table goes; an earlier one is replaced.
        output_torch_embs
            Also return the embeddings as a tensor.
        cell_state
            Column to a value: only such cells; the tensor alone is returned, and nothing written.

        Returns
        -------
        pd.DataFrame, with a tensor if asked for, or the tensor alone
            For cells a row each, longest first, the embedding in columns 0, 1, ..., then the labels. For genes the mean
            over cells, indexed by Ensembl ID. With a summary a row with its name.

        Raises
        ------
        InputError
            Dataset, model and options do not fit together, or no cell is left.
        """
        import torch

        whole = self._embedded(str(model_directory), str(input_data_file), cell_state)
        summary = whole if self.summary_stat is None else whole.summarised(self.summary_stat)
        if cell_state is None:
            written = whole if self.summary_stat in EXACT else summary
            write_csv(written.frame, output_path(output_directory, output_prefix, ".csv"))
        vectors = torch.from_numpy(np.ascontiguousarray(summary.vectors_nd))
        exact = vectors[0] if self.summary_stat in EXACT else vectors
        if cell_state is not None:
            return exact
        return (summary.frame, exact) if output_torch_embs else summary.frame

    @in_words_of(GENEFORMER)
    def get_state_embs(
        self,
        cell_states_to_model: Mapping[str, Any],
        model_directory: str | Path,
        input_data_file: str | Path,
        output_directory: str | Path,
        output_prefix: str,
        output_torch_embs: bool = True,
    ) -> "dict[str, Tensor] | dict[str, pd.DataFrame]":
        """Return the mean or median embedding of each state and write them to `DIRECTORY/PREFIX.parquet`.

        Parameters
        ----------
        cell_states_to_model
            `state_key`, `start_state`, `goal_state` and, if there are, `alt_states`.
        model_directory, input_data_file, output_directory, output_prefix
            As of `extract_embs`; the file is what `jobs.perturb --state-embeddings` reads.
        output_torch_embs
            Whether embeddings come as tensors, shape (hidden,), or as tables of one row.

        Raises
        ------
        InputError
            `summary_stat` is no exact one, or a state has no cells.
        """
        if self.summary_stat not in EXACT:
            rule, fix = f"must be {' or '.join(EXACT)} for states", "Choose one of them."
            raise InputError("EmbExtractor(summary_stat=...)", rule, repr(self.summary_stat), fix)
        states = CellStates.read(cell_states_to_model)
        model, dataset = str(model_directory), str(input_data_file)
        found = {
            name: self._embedded(model, dataset, {states.column: name}).summarised(self.summary_stat)
            for name in states.names
        }
        vectors = {name: table.vectors_nd[0] for name, table in found.items()}
        write_states(output_path(output_directory, output_prefix, ".parquet"), vectors)
        if not output_torch_embs:
            return {name: table.frame for name, table in found.items()}
        import torch

        return {name: torch.from_numpy(vector) for name, vector in vectors.items()}

    def plot_embs(
        self,
        embs: pd.DataFrame,
        plot_style: str,
        output_directory: str | Path,
        output_prefix: str,
        max_ncells_to_plot: int = 1000,
        kwargs_dict: Mapping[str, Any] | None = None,
    ) -> None:
        """Draw embeddings for each of `labels_to_plot`, to `DIRECTORY/PREFIX_STYLE_LABEL.png`.

        Parameters
        ----------
        embs
            What `extract_embs` returned, with labels, or the same read from its CSV.
        plot_style
            `umap`, or `heatmap`: cells by label, alike ones beside each other, against dimensions.
        output_directory, output_prefix
            Where pictures go.
        max_ncells_to_plot
            More are not drawn; those that are, are chosen at random.
        kwargs_dict
            None: a picture of another look is drawn from the table with scanpy.

        Raises
        ------
        InputError
            There is no label or no embedding, or another style is asked for.
        """
        from cellray import plots

        given = {"plot_style": plot_style, "kwargs_dict": kwargs_dict, "max_ncells_to_plot": max_ncells_to_plot}
        check_options("plot_embs", given, _PLOT_RULES)
        labels = [name for name in self.labels_to_plot or () if name in embs]
        if not labels:
            raise InputError("plot_embs", "needs labels_to_plot that the table has", "none", "Set emb_label as well.")
        some = embs.sample(min(len(embs), max_ncells_to_plot), random_state=0)
        vectors_nd = vectors_of(some, self.emb_label or ())
        draw = {"umap": plots.umap_png, "heatmap": plots.heatmap_png}[plot_style]
        for label in labels:
            picture = output_path(output_directory, output_prefix, f"_{plot_style}_{label}.png")
            with storage.atomic_file(picture) as path:
                draw(vectors_nd, some[label], path, f"{output_prefix}: {label}")

    def _embedded(self, model: str, dataset: str, state: Mapping[str, str] | None) -> Table:
        """Return the embeddings of the chosen cells, or of their genes."""
        model, filters = model_directory(model), {**(self.filter_data or {}), **(state or {})}
        with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
            every = open_cells(dataset, f"{folder}/all", model, self.token_dictionary_file)
            rows = choose_rows(every, CellChoice(filters, self.max_ncells))
            corpus = chosen_cells(every, rows, f"{folder}/chosen")
            for label in self.emb_label or ():
                corpus.require_column(label, "emb_label")
            embeddings = self._embed(corpus, model, f"{folder}/embeddings")
            if self.emb_mode == PER_GENE:
                return mean_of_genes(embeddings, corpus.vocabulary)
            table = embeddings.table()
            order = np.searchsorted(np.sort(rows), rows)
            labels = table.select(list(self.emb_label or ())).to_pandas().iloc[order].reset_index(drop=True)
            return Table(embeddings.matrix(table)[order], labels)

    def _embed(self, corpus: Corpus, model: str, output: str) -> Embeddings:
        place = {"corpus": corpus.uri, "model": model, "output": output}
        options = {"layer": self.emb_layer, "pooling": self.emb_mode, **run_options(self.job_options), **place}
        embed_cells(make_config(EmbedConfig, options, "EmbExtractor"))
        return Embeddings.open(output)


_LABELS = instance(list, tuple, type(None), what="a list of columns or None")
_RULES = {
    **COMMON,
    "emb_mode": one_of("cls", "cell", "gene"),
    "gene_emb_style": ONLY_MEAN,
    "emb_label": _LABELS,
    "labels_to_plot": _LABELS,
    "summary_stat": one_of(None, *SUMMARIES),
    "save_tdigest": one_of(False, fix="Leave it out: summaries are exact, there is no digest to save."),
}
_PLOT_RULES = {
    "plot_style": one_of("umap", "heatmap"),
    "kwargs_dict": one_of(None, fix="Draw the table with scanpy: its first columns are the embedding."),
    "max_ncells_to_plot": whole_number(2),
}
