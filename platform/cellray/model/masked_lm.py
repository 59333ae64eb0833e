"""Models with the vocabulary head, for pretraining: new ones of a preset, or those of a model directory."""

import logging
from typing import Any

import torch
from transformers import BertForMaskedLM

from cellray.errors import InputError, listing
from cellray.model.checkpoint import ModelDirectory, quiet_transformers
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)


def new_masked_lm(preset: str, vocabulary: GeneVocabulary, input_size: int, seed: int) -> BertForMaskedLM:
    """Return an untrained model: the same for the same seed.

    Raises
    ------
    InputError
        There is no such preset.
    """
    config = bert_config(preset, vocabulary, input_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForMaskedLM(config)


def load_masked_lm(directory: ModelDirectory, seed: int) -> BertForMaskedLM:
    """Return the model of a directory, ours or an official one, to go on training it.

    A directory without a vocabulary head, as of a fine-tuned model, gets a new one, which the seed gives; a warning
    says so.

    Raises
    ------
    InputError
        The encoder's weights are not all there.
    """
    with directory.files() as folder, torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        made: Any = BertForMaskedLM.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, attn_implementation="sdpa"
        )
    model, info = made
    missing = sorted(info["missing_keys"])
    if lost := [key for key in missing if key.startswith("bert.")]:
        fix = "Restore the model directory; it must hold a whole BERT checkpoint."
        rule = "the model must hold the encoder's weights"
        raise InputError(directory.uri, rule, f"{listing(lost, 3)} missing", fix)
    if missing:
        logger.warning("%s has no vocabulary head: training starts with a new one", directory.uri)
    return model  # type: ignore[no-any-return]
