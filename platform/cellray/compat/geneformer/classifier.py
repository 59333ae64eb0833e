"""`Classifier`: cell states or classes of genes, by the fine-tuning and prediction jobs."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellray import storage
from cellray.compat.geneformer.cells import CellChoice, choose_rows, chosen_cells, open_cells
from cellray.compat.geneformer.class_ids import read_class_ids, write_class_ids
from cellray.compat.geneformer.classifier_options import RULES, check_kind, check_methods, check_together
from cellray.compat.geneformer.classifier_pictures import ClassifierPictures
from cellray.compat.geneformer.classifier_results import of_predictions, of_report
from cellray.compat.geneformer.classifier_tasks import write_task
from cellray.compat.geneformer.files import output_path
from cellray.compat.geneformer.labelled import Labelled, drawn, labelled, without_rare
from cellray.compat.geneformer.prepared_parts import rows_of_parts
from cellray.compat.geneformer.running import run_options
from cellray.compat.geneformer.split_column import PART, read_split, with_parts
from cellray.compat.geneformer.training_args import finetune_options
from cellray.compat.official_files import model_directory
from cellray.compat.options import check_options
from cellray.compat.wording import GENEFORMER, in_words_of
from cellray.config import make_config
from cellray.data.corpora.corpus import Corpus
from cellray.data.corpora.hf_dataset import export_dataset
from cellray.errors import InputError
from cellray.infer.predict import PredictConfig, predict_cells
from cellray.infer.predictions import Predictions
from cellray.train.finetune import FinetuneConfig, finetune

SPLITS = {"train": 0.8, "valid": 0.1, "test": 0.1}


@dataclass(frozen=True)
class Classifier(ClassifierPictures):
    """Fine-tunes a model to tell the state of a cell or the class of a gene.

    Parameters
    ----------
    classifier
        `cell` or `gene`.
    quantize
        False: see `job_options` for LoRA.
    cell_state_dict
        {"state_key": COLUMN, "states": "all" or a list}; for `cell`.
    gene_class_dict
        Class to its genes; for `gene`.
    filter_data
        Column to the values that are wanted.
    rare_threshold
        Least share of the cells that a class needs.
    max_ncells, max_ncells_per_class
        Cells drawn at random, then so many of each class at most.
    training_args
        Hugging Face training arguments; see `cellray.compat.geneformer.training_args`. Default: 10 epochs for `cell`, 1
        for `gene`, 12 cells a process and step.
    ray_config
        None: `jobs.tune` searches.
    freeze_layers
        First layers that are kept as they are.
    num_crossval_splits
        0: all cells are trained on; 1: one split; 5 (or another number): folds.
    split_sizes
        Shares of the cells: `train`, `valid`, `test`.
    stratify_splits_col
        None or the column of the classes, which are spread evenly over parts in any case.
    no_eval
        Needs nothing: no cells are spared to watch training.
    forward_batch_size, nproc, model_version
        Need nothing: work is cut by tokens, and the model's directory tells its dictionaries.
    token_dictionary_file
        Of datasets without a vocabulary: released `token_dictionary*.pkl`, or a `vocabulary.json` of ours.
    ngpu
        Training processes, each with a GPU where torch finds one.
    job_options
        Of ours: further options of `jobs.finetune`, as {"lora_rank": 8}.

    Raises
    ------
    InputError
        An option has a value that cannot be had here, or two do not go together.
    """

    classifier: str | None = None
    quantize: bool = False
    cell_state_dict: Mapping[str, Any] | None = None
    gene_class_dict: Mapping[str, Sequence[str]] | None = None
    filter_data: Mapping[str, Any] | None = None
    rare_threshold: float = 0
    max_ncells: int | None = None
    max_ncells_per_class: int | None = None
    training_args: Mapping[str, Any] | None = None
    ray_config: object = None
    freeze_layers: int = 0
    num_crossval_splits: int = 1
    split_sizes: Mapping[str, float] | None = None
    stratify_splits_col: str | None = None
    no_eval: bool = False
    forward_batch_size: int = 100
    model_version: str = "V2"
    token_dictionary_file: str | Path | None = None
    nproc: int = 4
    ngpu: int = 1
    job_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_options("Classifier", vars(self), RULES)
        check_together(self.classifier, vars(self))
        finetune_options(self.training_args, self.classifier, self.ngpu, self.job_options)

    @property
    def _sizes(self) -> Mapping[str, float]:
        return SPLITS | dict(self.split_sizes or {})

    @in_words_of(GENEFORMER)
    def prepare_data(
        self,
        input_data_file: str | Path,
        output_directory: str | Path,
        output_prefix: str,
        split_id_dict: Mapping[str, Any] | None = None,
        test_size: float | None = None,
        attr_to_split: object = None,
        attr_to_balance: object = None,
        max_trials: int = 100,
        pval_threshold: float = 0.1,
    ) -> list[str]:
        """Choose and label cells, and write them as `PREFIX_labeled_train.dataset` and `..._test.dataset`.

        Without a test part (`test_size=0`, or classes of genes) there is one `PREFIX_labeled.dataset`. The numbers of
        the classes go to `PREFIX_id_class_dict.json`.

        Parameters
        ----------
        input_data_file
            A dataset, or a token corpus of ours.
        output_directory, output_prefix
            Where the results go.
        split_id_dict
            {"attr_key": COLUMN, "train": [values], "test": [values]}: cells are split by the values of a column.
        test_size
            Share of each class of cells that is held out, default: `split_sizes["test"]`. For genes None or 0.
        attr_to_split, attr_to_balance, max_trials, pval_threshold
            None; the numbers then need nothing. Split by `split_id_dict`.

        Returns
        -------
        list[str]
            The datasets.

        Raises
        ------
        InputError
            The dataset lacks a column or a class, a part would be empty, or an option cannot be had here.
        """
        check_methods("prepare_data", {"attr_to_split": attr_to_split, "attr_to_balance": attr_to_balance})
        check_kind("prepare_data", self.classifier, test_size=test_size)
        with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
            every = open_cells(str(input_data_file), f"{folder}/all", None, self.token_dictionary_file)
            cells = self._cells(every)
            share = self._sizes["test"] if test_size is None else test_size
            parts = rows_of_parts(every, cells, split_id_dict, 0.0 if self.classifier == "gene" else share)
            made = []
            for name, rows in parts.items():
                corpus = chosen_cells(every, rows, f"{folder}/{name or 'whole'}")
                made.append(
                    export_dataset(corpus, output_path(output_directory, output_prefix, f"_labeled{name}.dataset"))
                )
        classes = list(self.gene_class_dict) if self.gene_class_dict else cells.classes
        write_class_ids(classes, output_path(output_directory, output_prefix, "_id_class_dict.json"))
        return made

    @in_words_of(GENEFORMER)
    def train_all_data(
        self,
        model_directory: str | Path,
        prepared_input_data_file: str | Path,
        id_class_dict_file: str | Path,
        output_directory: str | Path,
        output_prefix: str,
        save_eval_output: bool = True,
        gene_balance: bool = False,
    ) -> str:
        """Fine-tune on all cells, without a test, and return the model's directory, `DIRECTORY/PREFIX.model`.

        Parameters
        ----------
        model_directory
            A model directory, ours or a released one, a URI, `models:/NAME@ALIAS`, or a released name.
        prepared_input_data_file, id_class_dict_file
            From `prepare_data`.
        output_directory, output_prefix
            Where the model goes; an interrupted training goes on from there.
        save_eval_output
            Needs nothing: there is no evaluation.
        gene_balance
            Rare classes of genes weigh more, as many times as they are rarer; for cells False.

        Raises
        ------
        InputError
            Dataset, classes and model do not fit together, or the output holds something else.
        """
        check_kind("train_all_data", self.classifier, gene_balance=gene_balance)
        split = {"folds": 1, "test_fraction": 0, "validation_fraction": 0}
        place = output_path(output_directory, output_prefix, "")
        return self._tuned(
            str(model_directory), prepared_input_data_file, id_class_dict_file, place, split, gene_balance
        )

    @in_words_of(GENEFORMER)
    def validate(
        self,
        model_directory: str | Path,
        prepared_input_data_file: str | Path,
        id_class_dict_file: str | Path,
        output_directory: str | Path,
        output_prefix: str,
        split_id_dict: object = None,
        attr_to_split: object = None,
        attr_to_balance: object = None,
        gene_balance: bool = False,
        max_trials: int = 100,
        pval_threshold: float = 0.1,
        save_eval_output: bool = True,
        predict_eval: bool = True,
        predict_trainer: bool = False,
        n_hyperopt_trials: int = 0,
        save_gene_split_datasets: bool = True,
        debug_gene_split_datasets: bool = False,
    ) -> dict[str, Any]:
        """Fine-tune and test on held-out cells (or genes), once or in folds.

        Parameters
        ----------
        model_directory, prepared_input_data_file, id_class_dict_file, output_directory, output_prefix, gene_balance
            As of `train_all_data`. Figures and pictures go to `DIRECTORY/PREFIX.model.report`.
        split_id_dict
            {"attr_key": COLUMN, "train": [values], "eval": [values]}; None: the held-out part is drawn, evenly over
            classes.
        attr_to_split, attr_to_balance
            None: split by `split_id_dict`.
        predict_trainer, debug_gene_split_datasets
            False.
        n_hyperopt_trials
            0: `jobs.tune` searches.
        max_trials, pval_threshold, save_eval_output, predict_eval, save_gene_split_datasets
            Need nothing: the report holds all figures and which cells or genes were in which part.

        Returns
        -------
        dict
            See `cellray.compat.geneformer.classifier_results.of_report`; `model` is the model's directory.

        Raises
        ------
        InputError
            Dataset, classes and model do not fit together, or an option cannot be had here.
        """
        given = {"attr_to_split": attr_to_split, "attr_to_balance": attr_to_balance}
        more = {"predict_trainer": predict_trainer, "debug_gene_split_datasets": debug_gene_split_datasets}
        check_methods("validate", {**given, **more, "n_hyperopt_trials": n_hyperopt_trials})
        check_kind("validate", self.classifier, gene_balance=gene_balance)
        if self.num_crossval_splits == 0:
            rule, fix = "must be 1 or more to validate", "Use train_all_data, or set it."
            raise InputError("Classifier(num_crossval_splits=...)", rule, "0", fix)
        share = self._sizes["valid"] / (self._sizes["train"] + self._sizes["valid"])
        split: dict[str, Any] = {"folds": self.num_crossval_splits, "test_fraction": share, "validation_fraction": 0}
        place, data = output_path(output_directory, output_prefix, ""), str(prepared_input_data_file)
        if split_id_dict is not None:
            named = read_split(split_id_dict)
            if self.num_crossval_splits != 1 or self.classifier == "gene":
                rule, fix = "goes with one split of cells", "Set num_crossval_splits=1, or leave it out."
                raise InputError("validate(split_id_dict=...)", rule, f"{self.num_crossval_splits} splits", fix)
            data, split = with_parts(data, place, named), {**split, "column": PART}
        model = self._tuned(str(model_directory), data, id_class_dict_file, place, split, gene_balance)
        return {**of_report(f"{model}.report", self.head), "model": model}

    @in_words_of(GENEFORMER)
    def evaluate_saved_model(
        self,
        model_directory: str | Path,
        id_class_dict_file: str | Path,
        test_data_file: str | Path,
        output_directory: str | Path,
        output_prefix: str,
        predict: bool = True,
    ) -> dict[str, Any]:
        """Let a fine-tuned model answer for labelled cells it has not seen.

        Parameters
        ----------
        model_directory
            From `train_all_data` or `validate`.
        id_class_dict_file, test_data_file
            From `prepare_data`.
        output_directory, output_prefix
            Answers go to `DIRECTORY/PREFIX_pred.csv`.
        predict
            Whether answers are written.

        Returns
        -------
        dict
            `conf_matrix`, `macro_f1`, `acc`, `all_roc_metrics`, `predictions` and `cells_without_a_class`.

        Raises
        ------
        InputError
            The model tells no such states of cells, or no cell has a label.
        """
        if self.classifier == "gene":
            fix = "Use validate, or jobs.predict --level gene for the classes of all genes."
            raise InputError(
                "evaluate_saved_model", "is for cells: genes are split, not cells", "a gene classifier", fix
            )
        model, classes = model_directory_of(model_directory), read_class_ids(id_class_dict_file)
        with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
            corpus = open_cells(str(test_data_file), f"{folder}/cells", model, self.token_dictionary_file)
            given = {"corpus": corpus.uri, "model": model, "output": f"{folder}/predictions"}
            predict_cells(make_config(PredictConfig, {**run_options(None), **given}, "Classifier"))
            found = of_predictions(Predictions.open(f"{folder}/predictions"), corpus, self.head, classes)
        if predict:
            with storage.atomic_file(output_path(output_directory, output_prefix, "_pred.csv")) as path:
                found["predictions"].to_csv(path, index=False)
        return found

    def _cells(self, corpus: Corpus) -> Labelled:
        """Return the cells to train on, with their classes; cells of a gene classifier have one class."""
        rows = choose_rows(corpus, CellChoice(self.filter_data or {}))
        if self.cell_state_dict is None:
            return drawn(Labelled(np.sort(rows), np.full(len(rows), "", object)), self.max_ncells, None)
        states = self.cell_state_dict["states"]
        wanted = None if states == "all" else [str(state) for state in states]
        cells = without_rare(labelled(corpus, rows, self.head, wanted), self.rare_threshold)
        return drawn(cells, self.max_ncells, self.max_ncells_per_class)

    def _tuned(
        self,
        model: str,
        dataset: str | Path,
        id_class_dict_file: str | Path,
        place: str,
        split: Mapping[str, Any],
        balance: bool,
    ) -> str:
        """Fine-tune and return the model's directory."""
        model, output = model_directory_of(model), f"{place}.model"
        corpus = open_cells(str(dataset), f"{place}.corpus", model, self.token_dictionary_file)
        classes = read_class_ids(id_class_dict_file)
        task = write_task(place, self.head, classes, self.gene_class_dict, split, balance=balance)
        gpu = bool(run_options(None)["gpus_per_actor"])
        options = {
            "freeze_layers": self.freeze_layers,
            "use_gpu": gpu,
            **finetune_options(self.training_args, self.classifier, self.ngpu, self.job_options),
            **{"corpus": corpus.uri, "model": model, "task": task, "output": output},
        }
        finetune(make_config(FinetuneConfig, options, "Classifier"))
        return storage.absolute(output)


def model_directory_of(name: str | Path) -> str:
    """Return the directory, URI or registered name of a model."""
    return model_directory(str(name))
