"""`InSilicoPerturber`: a screen of a dataset's cells, by the screening job."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellray import storage
from cellray.compat.geneformer.cells import SEED, CellChoice, choose_rows, chosen_cells, open_cells
from cellray.compat.geneformer.files import output_path
from cellray.compat.geneformer.running import COMMON, run_options
from cellray.compat.geneformer.states import CellStates
from cellray.compat.official_files import model_directory
from cellray.compat.options import Rule, check_options, instance, one_of, whole_number
from cellray.compat.wording import GENEFORMER, in_words_of
from cellray.config import make_config
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.infer.design import ALL_GENES
from cellray.infer.screen import ScreenConfig, screen
from cellray.infer.states import write_states

SHIFTS = ".shifts"
"""Suffix of a screen's directory."""
_MODES = {"cell": ("cell", False), "cls": ("cls", False), "cell_and_gene": ("cell", True)}
"""Official `emb_mode` to ours: pooling, and whether effects on genes are measured."""


@dataclass(frozen=True)
class InSilicoPerturber:
    """Perturbs genes of a dataset's cells.

    Parameters
    ----------
    perturb_type
        `delete`, `overexpress`, `inhibit` or `activate`.
    perturb_rank_shift
        Quartiles that `inhibit` and `activate` move by: 1, 2 or 3.
    genes_to_perturb
        `all`: each gene of a cell; a list: all of it together.
    combos, anchor_gene
        0: as above. 1 with an anchor and `all`: the anchor with each other gene.
    model_type, num_classes, nproc, forward_batch_size, model_version, clear_mem_ncells
        Need nothing: the model's directory tells its kind, work is cut by tokens and memory is bounded.
    emb_mode
        `cell`, `cls`, or `cell_and_gene`: also the effect on each gene.
    cell_emb_style
        `mean_pool`.
    filter_data
        Column to the values that are wanted.
    cell_states_to_model
        `state_key`, `start_state`, `goal_state` and, if there are, `alt_states`: shifts are measured towards these.
    state_embs_dict
        State to its embedding; None: the mean over its cells in the dataset, which are embedded first.
    max_ncells
        Cells drawn at random; None: all.
    cell_inds_to_perturb
        `all`, or {"start_ind": i, "end_ind": j}: of the cells that pass, longest first.
    emb_layer
        -1: the second to last hidden state, 0: the last.
    token_dictionary_file
        Of datasets without a vocabulary: released `token_dictionary*.pkl`, or a `vocabulary.json` of ours.
    job_options
        Of ours: further options of `jobs.perturb`, as {"actors": (1, 8), "donor": "donor"}.

    Raises
    ------
    InputError
        An option has a value that cannot be had here.
    """

    perturb_type: str = "delete"
    perturb_rank_shift: int | None = None
    genes_to_perturb: str | Sequence[str] = ALL_GENES
    combos: int = 0
    anchor_gene: str | None = None
    model_type: str = "Pretrained"
    num_classes: int = 0
    emb_mode: str = "cls"
    cell_emb_style: str = "mean_pool"
    filter_data: Mapping[str, Any] | None = None
    cell_states_to_model: Mapping[str, Any] | None = None
    state_embs_dict: Mapping[str, Any] | None = None
    max_ncells: int | None = None
    cell_inds_to_perturb: str | Mapping[str, int] = "all"
    emb_layer: int = -1
    forward_batch_size: int = 100
    nproc: int = 4
    model_version: str = "V2"
    token_dictionary_file: str | Path | None = None
    clear_mem_ncells: int = 1000
    job_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_options("InSilicoPerturber", vars(self), _RULES)
        moves, all_genes = self.perturb_type in ("inhibit", "activate"), self.genes_to_perturb == ALL_GENES
        partial = self.cell_inds_to_perturb != "all"
        for option, broken, rule, fix in (
            ("perturb_rank_shift", moves != (self.perturb_rank_shift is not None), *_RANK_SHIFT),
            ("combos", self.combos == 1 and not all_genes, *_PAIRS_OF_LIST),
            ("anchor_gene", (self.anchor_gene is not None) != (self.combos == 1), *_ANCHOR),
            ("state_embs_dict", self.state_embs_dict is not None and self.states is None, *_STATES),
            ("cell_inds_to_perturb", partial and self.states is not None and not self.state_embs_dict, *_INDICES),
        ):
            if broken:
                raise InputError(f"InSilicoPerturber({option}=...)", rule, repr(getattr(self, option)), fix)

    @property
    def states(self) -> CellStates | None:
        """The states that shifts are measured towards."""
        return None if self.cell_states_to_model is None else CellStates.read(self.cell_states_to_model)

    @in_words_of(GENEFORMER)
    def perturb_data(
        self,
        model_directory: str | Path,
        input_data_file: str | Path,
        output_directory: str | Path,
        output_prefix: str,
    ) -> str:
        """Screen a dataset; an interrupted screen goes on, a finished one is left as it is.

        Parameters
        ----------
        model_directory
            A model directory, ours or a released one, a URI, `models:/NAME@ALIAS`, or a released name.
        input_data_file
            A dataset, or a token corpus of ours.
        output_directory, output_prefix
            The screen goes to `DIRECTORY/in_silico_TYPE_PREFIX.shifts` (parquet), its cells to `....corpus` beside it.

        Returns
        -------
        str
            The screen's directory.

        Raises
        ------
        InputError
            Dataset, model, genes and states do not fit together, or the output holds another screen.
        """
        output = output_path(output_directory, f"in_silico_{self.perturb_type}_{output_prefix}", "")
        model = _resolve(str(model_directory))
        corpus = self._cells(str(input_data_file), model, f"{output}.corpus")
        given = {"corpus": corpus.uri, "model": model, "output": output + SHIFTS}
        if self.state_embs_dict is not None:
            given["state_embeddings"] = f"{output}.states.parquet"
            vectors = {str(name): np.asarray(vector, np.float32) for name, vector in self.state_embs_dict.items()}
            write_states(given["state_embeddings"], vectors)
        options = {**self._design(), **self._which_cells(), **run_options(self.job_options), **given}
        screen(make_config(ScreenConfig, options, "InSilicoPerturber"))
        return output + SHIFTS

    def _design(self) -> dict[str, Any]:
        """Return our options of what is done to which genes, and what is measured."""
        listed = (ALL_GENES,) if self.genes_to_perturb == ALL_GENES else tuple(self.genes_to_perturb)
        pooling, effects = _MODES[self.emb_mode]
        return {
            "kind": self.perturb_type,
            "quartiles": self.perturb_rank_shift or 1,
            "genes": listed,
            "together": len(listed) > 1,
            "anchor": () if self.anchor_gene is None else (self.anchor_gene,),
            "pooling": pooling,
            "effects": effects,
            "layer": self.emb_layer,
        }

    def _which_cells(self) -> dict[str, Any]:
        """Return our options of states and of the draw of cells."""
        drawn = {"max_cells": None if self._by_indices else self.max_ncells, "seed": SEED}
        if (states := self.states) is None:
            return drawn
        named = {"state_column": states.column, "start": states.start, "goal": states.goal}
        return {**drawn, **named, "alternatives": states.alternatives}

    @property
    def _by_indices(self) -> bool:
        return self.cell_inds_to_perturb != "all"

    def _cells(self, dataset: str, model: str, output: str) -> Corpus:
        """Return the cells that the screen is told: with indices just those to perturb, else all that pass."""
        filters, most, start, stop = dict(self.filter_data or {}), None, 0, None
        if isinstance(self.cell_inds_to_perturb, Mapping):
            start, stop = self.cell_inds_to_perturb["start_ind"], self.cell_inds_to_perturb["end_ind"]
            filters |= {} if self.states is None else {self.states.column: self.states.start}
            most = self.max_ncells
        choice = CellChoice(filters, most, start, stop)
        if choice.everything:
            return open_cells(dataset, output, model, self.token_dictionary_file)
        with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
            every = open_cells(dataset, f"{folder}/all", model, self.token_dictionary_file)
            rows = choose_rows(every, choice)
            if len(rows) < every.manifest.rows:
                return chosen_cells(every, rows, output)
        return open_cells(dataset, output, model, self.token_dictionary_file)


def _resolve(name: str) -> str:
    return storage.absolute(name) if Path(name).is_dir() else model_directory(name)


def _are_indices(given: Any) -> bool:  # noqa: ANN401
    """Tell whether this is `all` or a first index and the one after the last."""
    if not isinstance(given, Mapping):
        return bool(given == "all")
    whole = all(isinstance(value, int) and value >= 0 for value in given.values())
    return set(given) == {"start_ind", "end_ind"} and whole and given["start_ind"] < given["end_ind"]


_RANK_SHIFT = ("goes with inhibit and activate, which need it", "Say 1, 2 or 3 quartiles, or leave it out.")
_PAIRS_OF_LIST = (
    "must be 0 for a list, which is perturbed together",
    "For all its pairs: job_options={'together': False, 'pairs': True}.",
)
_ANCHOR = ("goes with combos=1, which needs it", "Name both, or neither.")
_STATES = ("needs cell_states_to_model", "Name the states, or leave it out.")
_INDICES = ("needs state_embs_dict where there are states", "Give their embeddings: EmbExtractor.get_state_embs.")
_RULES = {
    **COMMON,
    "perturb_type": one_of("delete", "overexpress", "inhibit", "activate"),
    "perturb_rank_shift": one_of(None, 1, 2, 3),
    "genes_to_perturb": Rule(
        lambda given: given == ALL_GENES or (isinstance(given, list | tuple) and len(given) > 0),
        "must be 'all' or a list of genes",
        "List Ensembl IDs.",
    ),
    "combos": one_of(0, 1),
    "anchor_gene": instance(str, type(None), what="a gene or None"),
    "emb_mode": one_of(*_MODES, fix="Screen twice in place of cls_and_gene: cls for cells, cell_and_gene for genes."),
    "cell_states_to_model": instance(Mapping, type(None), what="a dict of states or None"),
    "state_embs_dict": instance(Mapping, type(None), what="a dict of states to embeddings, or None"),
    "cell_inds_to_perturb": Rule(
        _are_indices, "must be 'all' or {'start_ind': i, 'end_ind': j}", "Indices count the cells, longest first."
    ),
    "clear_mem_ncells": whole_number(1),
}
