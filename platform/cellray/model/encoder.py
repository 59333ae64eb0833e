"""The encoder for inference: hidden states of a wanted layer, and nothing that lies above it.

The layers above the wanted one are not built, and neither is the vocabulary head, which is 41 % of V1's work.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import BertConfig, BertModel

from cellray.errors import InputError, listing
from cellray.model.checkpoint import CONFIG, WEIGHTS, ModelDirectory
from cellray.model.threads import steady_sums


class CellEncoder(nn.Module):
    """Token rows to hidden states.

    Parameters
    ----------
    bert
        The embedding layer and the transformer layers up to the wanted one.
    pad_id
        Token id of `<pad>`.
    """

    def __init__(self, bert: BertModel, pad_id: int) -> None:
        super().__init__()
        self.bert = bert
        self.pad_id = pad_id

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.bert.config.hidden_size)

    @property
    def input_size(self) -> int:
        """Most tokens of a row."""
        return int(self.bert.config.max_position_embeddings)

    def forward(self, input_ids_nl: Tensor) -> Tensor:
        """Return the hidden states of padded token rows.

        Parameters
        ----------
        input_ids_nl
            Cells x tokens, int64, padded at the end.

        Returns
        -------
        Tensor
            Cells x tokens x hidden; rows of padding are meaningless.
        """
        return hidden_states(self.bert, input_ids_nl, self.pad_id)


def hidden_states(bert: BertModel, input_ids_nl: Tensor, pad_id: int) -> Tensor:
    """Return the last hidden states of padded token rows; see `CellEncoder.forward`."""
    present_nl = input_ids_nl != pad_id
    mask_nl = None if bool(present_nl.all()) else present_nl
    with steady_sums(input_ids_nl.numel()):
        hidden_nld: Tensor = bert(input_ids=input_ids_nl, attention_mask=mask_nl).last_hidden_state
    return hidden_nld


def first_hidden_states(bert: BertModel, input_ids_nl: Tensor, pad_id: int) -> Tensor:
    """Return the last hidden state of each row's first token, `<cls>`. Shape (cells, hidden).

    Equal to `hidden_states(...)[:, 0]`; but the last layer, whose other rows nobody reads, computes keys and values
    for them and nothing else. Its own `forward` is not called, so where that does more (weights cut among workers,
    activations computed twice, compiled code), all rows are computed.
    """
    if not all(_is_plain(layer) for layer in bert.encoder.layer[-1:]):
        return hidden_states(bert, input_ids_nl, pad_id)[:, 0]
    present_nl = input_ids_nl != pad_id
    mask = None if bool(present_nl.all()) else present_nl[:, None, None, :]  # over heads and queries
    with steady_sums(input_ids_nl.numel()):
        hidden_nld: Tensor = bert.embeddings(input_ids=input_ids_nl)
        for layer in bert.encoder.layer[:-1]:
            hidden_nld = layer(hidden_nld, mask)
        return _first_of_last(bert, hidden_nld, mask) if len(bert.encoder.layer) else hidden_nld[:, 0]


def _first_of_last(bert: BertModel, hidden_nld: Tensor, mask: Tensor | None) -> Tensor:
    """Return what the last layer makes of each row's first token. Shape (cells, hidden)."""
    last: Any = bert.encoder.layer[-1]
    attention, own = last.attention.self, hidden_nld[:, :1]

    def split(linear: nn.Module, states_nld: Tensor) -> Tensor:
        split_nlhd = linear(states_nld).unflatten(-1, (attention.num_attention_heads, attention.attention_head_size))
        return split_nlhd.transpose(1, 2)  # type: ignore[no-any-return]

    key_nhld, value_nhld = split(attention.key, hidden_nld), split(attention.value, hidden_nld)
    with steady_sums():
        context_nhld = nn.functional.scaled_dot_product_attention(
            split(attention.query, own),
            key_nhld,
            value_nhld,
            attn_mask=mask,
            dropout_p=attention.dropout.p if bert.training else 0.0,
        )
        attended_nld = last.attention.output(context_nhld.transpose(1, 2).flatten(2), own)
        return last.feed_forward_chunk(attended_nld)[:, 0]  # type: ignore[no-any-return]


def _is_plain(layer: Any) -> bool:  # noqa: ANN401  # a transformers layer
    """Tell whether a layer's `forward` does nothing but what its parts do."""
    checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
    return not (isinstance(layer, FSDPModule) or checkpointed or layer._compiled_call_impl is not None)


def check_layer(model: ModelDirectory, emb_layer: int) -> int:
    """Return how many transformer layers a hidden state needs.

    Raises
    ------
    InputError
        The model has no such layer.
    """
    layers = model.n_layers + emb_layer
    if not 0 <= layers <= model.n_layers:
        rule = f"--layer must lie in {-model.n_layers}..0"
        raise InputError(model.uri, rule, str(emb_layer), "0 is the last hidden state, -1 the one before.")
    return layers


def load_encoder(model: ModelDirectory, emb_layer: int, device: torch.device | str = "cpu") -> CellEncoder:
    """Load the layers of a model that a hidden state needs.

    Parameters
    ----------
    model
        An open model directory.
    emb_layer
        0 = the last hidden state, -1 = the second to last (usual for zero-shot work), and so on down to the
        embedding layer's output.
    device
        Where to compute.

    Raises
    ------
    InputError
        The model has no such layer, or weights are missing.
    """
    with model.files() as directory:
        bert = load_layers(model, emb_layer, directory)
    return CellEncoder(bert, model.pad_id).to(device).eval()


def load_layers(model: ModelDirectory, emb_layer: int, directory: Path) -> BertModel:
    """Load the layers up to a hidden state from `model.files()`; see `load_encoder`."""
    layers = check_layer(model, emb_layer)
    config = BertConfig.from_dict(model.config.to_dict() | {"num_hidden_layers": layers, "attn_implementation": "sdpa"})
    bert = BertModel(config, add_pooling_layer=False)
    _fill(bert, directory / WEIGHTS, model.uri)
    return bert


def _fill(bert: BertModel, weights: Path, name: str) -> None:
    """Copy the weights the layers need; others in the file are not read."""
    fix = "Restore the model directory; it must hold a whole BERT checkpoint."
    try:
        with safe_open(weights, framework="pt") as file:
            stored = set(file.keys())
            prefix = "bert." if any(key.startswith("bert.") for key in stored) else ""
            wanted = bert.state_dict().keys()
            missing = sorted(key for key in wanted if prefix + key not in stored)
            if missing:
                raise InputError(
                    name, "the model must hold the encoder's weights", f"{listing(missing, 3)} missing", fix
                )
            bert.load_state_dict({key: file.get_tensor(prefix + key) for key in wanted})
    except (SafetensorError, RuntimeError, OSError) as error:
        found = " ".join(str(error).split())[:200]
        raise InputError(name, f"{WEIGHTS} must be whole and fit {CONFIG}", found, fix) from None
