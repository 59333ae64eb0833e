"""What options of `Classifier` and of its methods may be."""

from collections.abc import Mapping
from typing import Any

from cellray.compat.geneformer.running import COMMON
from cellray.compat.options import Rule, check_options, instance, one_of, whole_number
from cellray.errors import InputError

_TUNE = "Leave it out: jobs.tune searches, with --space jobs/configs/space_finetune.toml."
_SPLIT = "Split by a column with split_id_dict, or with a task file of ours ([split] column, group)."


def _are_shares(given: Any) -> bool:  # noqa: ANN401
    if given is None:
        return True
    known = isinstance(given, Mapping) and set(given) == {"train", "valid", "test"}
    return known and abs(sum(given.values()) - 1) < 1e-6 and min(given.values()) >= 0


RULES = {
    **{name: COMMON[name] for name in ("filter_data", "max_ncells", "forward_batch_size", "nproc", "model_version")},
    "job_options": COMMON["job_options"],
    "classifier": one_of("cell", "gene"),
    "quantize": one_of(False, fix="Train additions to the weights instead: job_options={'lora_rank': 8}."),
    "cell_state_dict": Rule(
        lambda given: given is None or (isinstance(given, Mapping) and set(given) == {"state_key", "states"}),
        "must be {'state_key': COLUMN, 'states': 'all' or a list}",
        "Correct it.",
    ),
    "gene_class_dict": instance(Mapping, type(None), what="a dict of classes to genes, or None"),
    "rare_threshold": Rule(
        lambda given: isinstance(given, int | float) and 0 <= given < 1, "must lie in 0 .. 1", "It is a share of cells."
    ),
    "max_ncells_per_class": whole_number(1, or_none=True),
    "training_args": instance(Mapping, type(None), what="a dict of training arguments, or None"),
    "ray_config": one_of(None, fix=_TUNE),
    "freeze_layers": whole_number(0),
    "num_crossval_splits": whole_number(0),
    "split_sizes": Rule(_are_shares, "must be shares of train, valid and test that add up to 1", "Correct them."),
    "no_eval": one_of(False, True),
    "ngpu": whole_number(1),
}
_METHODS = {
    "attr_to_split": one_of(None, fix=_SPLIT),
    "attr_to_balance": one_of(None, fix=_SPLIT),
    "predict_trainer": one_of(False, fix="Leave it out: evaluate_saved_model and jobs.predict answer."),
    "debug_gene_split_datasets": one_of(False, fix="Leave it out: folds.csv of the report says what went where."),
    "n_hyperopt_trials": one_of(0, fix=_TUNE),
}


_ONE_KIND = {
    "test_size": ("cell", "Leave it out: validate holds out genes, split_sizes['valid'] of them."),
    "gene_balance": ("gene", "Leave it out, or use jobs.finetune with a task file (class_weights = 'balanced')."),
}
"""Options of methods that mean something for one kind of classifier alone."""


def check_kind(method: str, classifier: str | None, **given: object) -> None:
    """Check options that are for cells or for genes alone.

    Raises
    ------
    InputError
        One is set, and the classifier is of the other kind.
    """
    for name, value in given.items():
        kind, fix = _ONE_KIND[name]
        if value and classifier != kind:
            raise InputError(f"{method}({name}=...)", f"is for classifier={kind!r}", repr(value), fix)


def check_methods(method: str, given: Mapping[str, Any]) -> None:
    """Check options of a method; see `cellray.compat.options.check_options`."""
    check_options(method, given, {name: _METHODS[name] for name in given})


def check_together(classifier: str | None, given: Mapping[str, Any]) -> None:
    """Check options that go together.

    Raises
    ------
    InputError
        They do not.
    """
    wanted, other = ("cell_state_dict", "gene_class_dict")[:: 1 if classifier == "cell" else -1]
    state_key = (given["cell_state_dict"] or {}).get("state_key")
    of_cells = ("rare_threshold", "max_ncells_per_class", "stratify_splits_col")
    for option, broken, rule, fix in (
        (wanted, given[wanted] is None, f"is needed by classifier={classifier!r}", "Give it."),
        (other, given[other] is not None, f"is not for classifier={classifier!r}", "Leave it out."),
        *(
            (name, classifier == "gene" and bool(given[name]), "is for cells", "Leave it out: genes are split.")
            for name in of_cells
        ),
        (
            "stratify_splits_col",
            given["stratify_splits_col"] not in (None, state_key),
            "must be the column of the classes, which are spread evenly in any case",
            "Leave it out, or use a task file of ours ([split] group).",
        ),
    ):
        if broken:
            raise InputError(f"Classifier({option}=...)", rule, repr(given[option]), fix)
