"""How the classes run our jobs: in this process, on the accelerator if there is one, unless told otherwise."""

from collections.abc import Mapping
from typing import Any

import torch

from cellray.compat.options import NUMBER_OF_PROCESSES, instance, one_of, whole_number

ONLY_MEAN = one_of("mean_pool")
_QUANTIZED = "Quantized weights are not read: use the released ones, with job_options={'precision': 'bf16'} in screens."
_NOT_READ = {
    "Pretrained-Quantized": _QUANTIZED,
    "MTLCellClassifier-Quantized": _QUANTIZED,
    "MTLCellClassifier": "Models of the official multitask classifier are not read: train one of ours, with a task "
    "file of several heads and jobs.finetune, and leave model_type out: its directory tells its kind.",
}
COMMON = {
    "model_type": one_of("Pretrained", "CellClassifier", "GeneClassifier", fixes=_NOT_READ),
    "num_classes": whole_number(0),
    "cell_emb_style": ONLY_MEAN,
    "filter_data": instance(Mapping, type(None), what="a dict of a column to values, or None"),
    "max_ncells": whole_number(1, or_none=True),
    "emb_layer": one_of(-1, 0),
    "forward_batch_size": whole_number(1),
    "nproc": NUMBER_OF_PROCESSES,
    "model_version": one_of("V1", "V2"),
    "job_options": instance(Mapping, type(None), what="a dict of options of our job, or None"),
}
"""Rules of options that several classes have. `num_classes`, `forward_batch_size`, `nproc` and `model_version` need
nothing: the model's directory tells its kind and dictionaries, and work is cut by tokens."""


def run_options(job_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of a job that runs a model: where it runs, and what the caller says."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {"actors": (0, 0), "gpus_per_actor": int(accelerator is not None), **(job_options or {})}
