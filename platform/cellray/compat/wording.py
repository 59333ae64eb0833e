"""Errors of our jobs in the words of another package's interface: its options, and the caller's own dataset.

Knows names only. What no table names stays as it is.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from cellray.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

_TEMPORARY = re.compile(r"[^\s'\"]*/cellray-[a-z0-9_]{8}/[^\s'\":;,]*")
_DATASETS = ("input_data_file", "prepared_input_data_file", "test_data_file", "input_data_directory")

HELICAL = {
    "--output": "output_path",
    "--gene-ids": "gene_names",
    "gene_ids": "gene_names",
    "--obs-columns": "custom_attr_name_dict",
    "--pooling": "emb_mode",
    "--pooling cls": 'emb_mode="cls"',
    "--pooling cell": 'emb_mode="cell"',
    "--layer": "emb_layer",
}
"""Options of ours to helical's."""
GENEFORMER = {
    "--output": "output_directory or output_prefix",
    "--gene-ids": "use_h5ad_index",
    "--obs-columns": "TranscriptomeTokenizer's custom_attr_name_dict",
    "--pooling": "emb_mode",
    "--pooling cls": 'emb_mode="cls"',
    "--pooling cell": 'emb_mode="cell"',
    "--layer": "emb_layer",
    "--genes": "genes_to_perturb",
    "--anchor": "anchor_gene",
    "--kind": "perturb_type",
    "--quartiles": "perturb_rank_shift",
    "--max-cells": "max_ncells",
    "--state-embeddings": "state_embs_dict",
    "--state-column": "cell_states_to_model['state_key']",
    "--start": "cell_states_to_model['start_state']",
    "--goal": "cell_states_to_model['goal_state']",
    "--alternatives": "cell_states_to_model['alt_states']",
    "--effects": 'emb_mode="cell_and_gene"',
    "--input-size": "model_input_size",
    "--null": "null_dist_data_directory",
    "--gene-names": "job_options={'gene_names': ...}",
}
"""Options of ours to those of Geneformer's classes."""


def in_words_of(names: Mapping[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator: an `InputError` of a method speaks of these options, and of the dataset it was given.

    Parameters
    ----------
    names
        Option of ours to theirs; of two that fit, the longer one counts.
    """
    ours = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    option = re.compile(rf"(?<![\w-])(?:{ours})(?![\w-])")

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(method)

        @wraps(method)
        def worded(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return method(*args, **kwargs)
            except InputError as error:
                given = signature.bind(*args, **kwargs).arguments
                dataset = next((str(given[name]) for name in _DATASETS if name in given), "the dataset")
                parts = (_TEMPORARY.sub(lambda _: dataset, part) for part in error.args)
                raise InputError(*(option.sub(lambda own: names[own[0]], part) for part in parts)) from None

        return worded

    return decorate
