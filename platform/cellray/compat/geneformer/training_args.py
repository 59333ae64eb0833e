"""Hugging Face training arguments, as Geneformer's classifier takes them, as options of our fine-tuning."""

from collections.abc import Callable, Mapping
from typing import Any

from cellray.errors import InputError, listing

_RENAMED = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "batch_size",
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
        *("do_train", "do_eval", "eval_strategy", "evaluation_strategy", "logging_strategy", "load_best_model_at_end"),
        *("save_strategy", "save_steps", "save_total_limit", "group_by_length", "length_column_name"),
        *("per_device_eval_batch_size", "dataloader_num_workers", "remove_unused_columns"),
    }
)
"""Where things go, when they are told and kept, how rows are batched: our job sees to these."""


def finetune_options(training_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of `jobs.finetune` that training arguments mean.

    Raises
    ------
    InputError
        An argument has no counterpart.
    """
    given = dict(training_args or {})
    unknown = set(given) - set(_RENAMED) - set(_TRANSLATED) - NEED_NOTHING
    if unknown:
        known = listing([*_RENAMED, *_TRANSLATED], limit=30)
        fix = "Leave it out, or give our option through job_options: see jobs.finetune --help."
        raise InputError("training_args", f"must be some of {known}", listing(unknown), fix)
    found = {ours: given[theirs] for theirs, ours in _RENAMED.items() if theirs in given}
    for theirs, translate in _TRANSLATED.items():
        found |= translate(given[theirs]) if theirs in given else {}
    if found.get("max_steps", 0) < 1:  # -1 is theirs for: by epochs
        found.pop("max_steps", None)
    return found
