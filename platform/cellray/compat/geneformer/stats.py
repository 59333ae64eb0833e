"""`InSilicoPerturberStats`: official tables of finished screens, by the statistics job."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cellray import storage
from cellray.compat.geneformer.files import output_path, write_csv
from cellray.compat.geneformer.official_tables import COLUMNS, official, shifts_of_cells
from cellray.compat.geneformer.screens import open_screens
from cellray.compat.geneformer.states import CellStates
from cellray.compat.options import Rule, check_options, instance, one_of
from cellray.compat.wording import GENEFORMER, in_words_of
from cellray.config import make_config
from cellray.errors import InputError, listing
from cellray.infer.perturbation_stats import CELLS, PerturbationStatsConfig, perturbation_stats
from cellray.infer.shift_tables import ShiftTable
from cellray.infer.tables import TABLE
from cellray.shift_schema import GROUP_MARK

ALL = "all"


@dataclass(frozen=True)
class InSilicoPerturberStats:
    """Computes tables of screens.

    Parameters
    ----------
    mode
        `goal_state_shift`, `vs_null`, `mixture_model`, `aggregate_data` or `aggregate_gene_shifts`.
    genes_perturbed
        `all`, or the list that was perturbed together: only that perturbation.
    combos, anchor_gene
        1: pairs with the anchor, in `mixture_model`.
    cell_states_to_model
        The screen's own; needed by `goal_state_shift`.
    pickle_suffix
        Of the names of official files of raw shifts, where the folder holds such and no screen of ours.
    model_version
        Needs nothing: screens know their genes.
    token_dictionary_file
        Of official files of raw shifts: released `token_dictionary*.pkl`, or a `vocabulary.json` of ours.
    gene_name_id_dictionary_file
        Table of symbols: `.csv`, `.tsv`, `.parquet`, `.json`, or a released `gene_name_id_dict*.pkl`.
    job_options
        Of ours: further options of `jobs.perturbation_stats`, as {"donor": "donor", "min_detections": 5}.

    Raises
    ------
    InputError
        An option has a value that cannot be had here.
    """

    mode: str = "mixture_model"
    genes_perturbed: str | Sequence[str] = ALL
    combos: int = 0
    anchor_gene: str | None = None
    cell_states_to_model: Mapping[str, Any] | None = None
    pickle_suffix: str | None = "_raw.pickle"
    model_version: str = "V2"
    token_dictionary_file: str | Path | None = None
    gene_name_id_dictionary_file: str | Path | None = None
    job_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_options("InSilicoPerturberStats", vars(self), _RULES)
        pairs = self.combos == 1
        for option, broken, rule, fix in (
            ("combos", pairs and self.mode != "mixture_model", "1 goes with mode mixture_model", "Use that mode."),
            ("anchor_gene", self.anchor_gene is not None and not pairs, "goes with combos=1", "Name both, or neither."),
            ("cell_states_to_model", self.mode == "goal_state_shift" and self.states is None, *_NEEDS_STATES),
        ):
            if broken:
                raise InputError(f"InSilicoPerturberStats({option}=...)", rule, repr(getattr(self, option)), fix)

    @property
    def states(self) -> CellStates | None:
        """The screen's states."""
        return None if self.cell_states_to_model is None else CellStates.read(self.cell_states_to_model)

    @in_words_of(GENEFORMER)
    def get_stats(
        self,
        input_data_directory: str | Path,
        null_dist_data_directory: str | Path | None,
        output_directory: str | Path,
        output_prefix: str,
        null_dict_list: object = None,
    ) -> pd.DataFrame:
        """Compute the table of a mode and write it to `DIRECTORY/PREFIX.csv`, with the official columns.

        Parameters
        ----------
        input_data_directory
            Folder of one or several screens (`*.shifts`) or a screen itself, or of official files of raw shifts.
        null_dist_data_directory
            `vs_null`: the same of the null cells.
        output_directory, output_prefix
            Where the table goes; `PREFIX.parquet` beside it has our further columns (effect sizes, donors) too. Earlier
            ones are replaced.
        null_dict_list
            None: null cells are screened, too.

        Returns
        -------
        pd.DataFrame
            The official table.

        Raises
        ------
        InputError
            There is no finished screen, screens differ in what they measured, or one lacks what the mode needs.
        """
        if null_dict_list is not None:
            fix = "Name null_dist_data_directory."
            raise InputError("get_stats(null_dict_list=...)", "must be None", type(null_dict_list).__name__, fix)
        with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
            test = self._screen(input_data_directory, f"{folder}/test")
            asked = null_dist_data_directory if self.mode == "vs_null" else None
            null = None if asked is None else self._screen(asked, f"{folder}/null")
            whole = self._table(test, null, folder)
        found = official(whole, self.mode)
        write_csv(found, output_path(output_directory, output_prefix, ".csv"))
        with storage.atomic_file(output_path(output_directory, output_prefix, ".parquet")) as path:
            whole.to_parquet(path, index=False)
        return found

    def _table(self, test: ShiftTable, null: ShiftTable | None, folder: str) -> pd.DataFrame:
        """Return all columns of the rows that are asked for."""
        wanted = None if isinstance(self.genes_perturbed, str) else GROUP_MARK.join(self.genes_perturbed)
        if wanted is not None and wanted not in (known := test.stream().genes):
            rule, fix = "must be a perturbation of the screen", "List the genes as they were perturbed."
            raise InputError("InSilicoPerturberStats(genes_perturbed=...)", rule, f"{wanted}; {listing(known)}", fix)
        if self.mode == "goal_state_shift" and wanted is not None:
            assert self.states is not None
            return shifts_of_cells(test, wanted, self.states)
        given = {"shifts": test.uri, "output": f"{folder}/{TABLE}", "null": None if null is None else null.uri}
        options = {"mode": self.mode, "pairs": self.combos == 1, "anchor": self.anchor_gene}
        options |= {**self._names(test, folder), **(self.job_options or {}), **given}
        perturbation_stats(make_config(PerturbationStatsConfig, options, "InSilicoPerturberStats"))
        name = CELLS if self.mode == "aggregate_data" else TABLE
        table: pd.DataFrame = pd.read_parquet(f"{given['output']}/{name}.parquet")
        return table if wanted is None else table[table["Ensembl_ID"] == wanted].reset_index(drop=True)

    def _screen(self, directory: str | Path, folder: str) -> ShiftTable:
        found = open_screens(str(directory), folder, self.pickle_suffix, self.token_dictionary_file, self.states)
        if self.states is not None:
            own = found.manifest.states
            if own is None or not set(self.states.names) <= set(own.names):
                told = "none" if own is None else listing(own.names)
                fix = "Name the states that the screen was made with."
                raise InputError(found.uri, f"must have the states {listing(self.states.names)}", told, fix)
        return found

    def _names(self, test: ShiftTable, folder: str) -> dict[str, str]:
        """Return our options of symbols and token ids."""
        from cellray.compat.geneformer.official_tables import symbols_file

        options = {}
        if self.gene_name_id_dictionary_file is not None:
            options["gene_names"] = symbols_file(self.gene_name_id_dictionary_file, f"{folder}/symbols.csv")
        vocabulary = storage.join(test.manifest.corpus, "vocabulary.json")
        if storage.exists(vocabulary):
            options["vocabulary"] = vocabulary
        return options


_NEEDS_STATES = ("is needed by goal_state_shift", "Name the states that the screen was made with.")
_RULES = {
    "mode": one_of(*COLUMNS),
    "genes_perturbed": Rule(
        lambda given: given == ALL or (isinstance(given, list | tuple) and len(given) > 0),
        "must be 'all' or the list that was perturbed together",
        "List Ensembl IDs.",
    ),
    "combos": one_of(0, 1),
    "anchor_gene": instance(str, type(None), what="a gene or None"),
    "cell_states_to_model": instance(Mapping, type(None), what="a dict of states or None"),
    "pickle_suffix": instance(str, type(None), what="an ending of names, or None"),
    "model_version": one_of("V1", "V2"),
    "job_options": instance(Mapping, type(None), what="a dict of options of our job, or None"),
}
