"""The sizes of Geneformer models."""

from dataclasses import dataclass
from typing import Any

from cellray.errors import InputError
from cellray.vocabulary import PAD, GeneVocabulary


@dataclass(frozen=True)
class Preset:
    """Architecture of a model: BERT with ReLU, learned positions, post-LayerNorm (eps 1e-12)."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    dropout: float


PRESETS = {
    "tiny": Preset(layers=3, hidden=128, heads=2, ffn=256, dropout=0.02),
    "v1-10m": Preset(layers=6, hidden=256, heads=4, ffn=512, dropout=0.02),
    "v2-104m": Preset(layers=12, hidden=768, heads=12, ffn=3072, dropout=0.1),
    "v2-316m": Preset(layers=18, hidden=1152, heads=18, ffn=4608, dropout=0.1),
}
"""`tiny` is for laptops and tests; the others are the released models (Theodoris et al. 2023; Chen et al. 2024)."""


def bert_config(preset: str, vocabulary: GeneVocabulary, input_size: int) -> Any:  # noqa: ANN401  # a transformers.BertConfig; imported late
    """Return the transformers configuration of a preset for a vocabulary.

    Raises
    ------
    InputError
        There is no such preset.
    """
    from transformers import BertConfig

    if preset not in PRESETS:
        raise InputError("--preset", f"must be one of {', '.join(PRESETS)}", repr(preset), "Choose one of them.")
    size = PRESETS[preset]
    return BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.ffn,
        hidden_act="relu",
        hidden_dropout_prob=size.dropout,
        attention_probs_dropout_prob=size.dropout,
        max_position_embeddings=input_size,
        layer_norm_eps=1e-12,
        pad_token_id=vocabulary.special_tokens[PAD],
        bos_token_id=None,
        eos_token_id=None,
    )
