"""Hugging Face training arguments, as Geneformer's classifier takes them, as options of our fine-tuning."""

from collections.abc import Callable, Mapping
from typing import Any

from cellray.errors import InputError, listing

_RENAMED = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "warmup_steps": "warmup_steps",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "seed": "seed",
    "logging_steps": "log_every",
    "eval_steps": "validate_every",
    "gradient_checkpointing": "gradient_checkpointing",
}
_TRANSLATED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "lr_scheduler_type": lambda value: {"schedule": str(getattr(value, "value", value))},
    "bf16": lambda value: {"precision": "bf16" if value else "float32"},
}
NEED_NOTHING = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm"),
        *("do_train", "do_eval", "eval_strategy", "evaluation_strategy", "logging_strategy"),
        *("save_strategy", "save_steps", "save_total_limit", "group_by_length", "length_column_name"),
        *("per_device_eval_batch_size", "dataloader_num_workers", "remove_unused_columns"),
    }
)
"""Where things go, when they are told and kept, how rows are batched: our job sees to these."""
EPOCHS = {"cell": 10, "gene": 1}
"""Official number of epochs where nothing is said."""
_PER_DEVICE = "per_device_train_batch_size"
_CELLS_PER_DEVICE = 12
_BEST = "load_best_model_at_end"


def finetune_options(
    training_args: Mapping[str, Any] | None,
    classifier: str | None,
    ngpu: int = 1,
    job_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the options of `jobs.finetune` that training arguments mean.

    Parameters
    ----------
    training_args
        By their Hugging Face names.
    classifier
        `cell` or `gene`, whose usual numbers of epochs differ.
    ngpu
        Training processes; a step takes `per_device_train_batch_size` cells of each.
    job_options
        Options of ours, which outweigh all others. Of a range of `num_workers` the most count.

    Raises
    ------
    InputError
        An argument has no counterpart.
    """
    given, own = dict(training_args or {}), dict(job_options or {})
    _check(given)
    processes = own.get("num_workers", ngpu)
    step = _times(given.get(_PER_DEVICE, _CELLS_PER_DEVICE), processes)
    found: dict[str, Any] = {"num_workers": (ngpu, ngpu), "batch_size": step}
    found |= {ours: given[theirs] for theirs, ours in _RENAMED.items() if theirs in given}
    for theirs, translate in _TRANSLATED.items():
        found |= translate(given[theirs]) if theirs in given else {}
    if found.get("max_steps", 0) < 1:  # -1 is theirs for: by epochs
        found.pop("max_steps", None)
    found |= own
    return found if {"epochs", "max_steps"} & set(found) else {**found, "epochs": EPOCHS[str(classifier)]}


def _check(given: Mapping[str, Any]) -> None:
    if unknown := set(given) - set(_RENAMED) - set(_TRANSLATED) - NEED_NOTHING - {_PER_DEVICE, _BEST}:
        known = listing([*_RENAMED, *_TRANSLATED, _PER_DEVICE], limit=30)
        fix = "Leave it out, or give our option through job_options: see jobs.finetune --help."
        raise InputError("training_args", f"must be some of {known}", listing(unknown), fix)
    if given.get(_BEST):
        fix = "Leave it out, or use jobs.finetune: a task file's [split] validation_fraction chooses the best weights."
        raise InputError(f"training_args[{_BEST!r}]", "must be False: the last weights are kept", "True", fix)


def _times(cells: Any, processes: Any) -> int:  # noqa: ANN401  # as given
    """Return the cells of a step over all processes; of a range of processes the most count."""
    most = max(processes, default=None) if isinstance(processes, list | tuple) else processes
    for name, value in ((_PER_DEVICE, cells), ("num_workers", most)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(name, "must be a whole number from 1 on", repr(value), "Correct it.")
    return int(cells * most)
