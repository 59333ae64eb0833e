"""The encoder for inference: hidden states of a wanted layer, and nothing that lies above it.

The layers above the wanted one are not built, and neither is the vocabulary head, which is 41 % of V1's work.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from cellray.errors import InputError, listing
from cellray.model.checkpoint import CONFIG, WEIGHTS, ModelDirectory


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
        present_nl = input_ids_nl != self.pad_id
        mask_nl = None if bool(present_nl.all()) else present_nl
        hidden_nld: Tensor = self.bert(input_ids=input_ids_nl, attention_mask=mask_nl).last_hidden_state
        return hidden_nld


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
    layers = check_layer(model, emb_layer)
    config = BertConfig.from_dict(model.config.to_dict() | {"num_hidden_layers": layers, "attn_implementation": "sdpa"})
    bert = BertModel(config, add_pooling_layer=False)
    with model.files() as directory:
        _fill(bert, directory / WEIGHTS, model.uri)
    return CellEncoder(bert, model.pad_id).to(device).eval()


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
