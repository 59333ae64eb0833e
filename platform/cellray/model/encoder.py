"""The encoder for inference: hidden states of a wanted layer, and nothing that lies above it.

The layers above the wanted one are not built, and neither is the vocabulary head, which is 41 % of V1's work.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertModel

from cellray.errors import InputError
from cellray.model.checkpoint import ModelDirectory, loading


class _Layers(BertModel):
    """BERT that may be built with fewer layers than its checkpoint has, without a word about the others."""

    _keys_to_ignore_on_load_unexpected = [r"^cls\.", r"^classifier\.", r"pooler\.", r"encoder\.layer\.\d+\."]  # noqa: RUF012


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
    layers = model.n_layers + emb_layer
    if not 0 <= layers <= model.n_layers:
        raise InputError(
            model.uri, f"--layer must lie in {-model.n_layers}..0", str(emb_layer), "0 is the last hidden state, -1 the one before."
        )
    with model.files() as directory:
        bert = _load(directory, layers, model.uri)
    return CellEncoder(bert, model.pad_id).to(device).eval()


def _load(directory: Path, layers: int, name: str) -> BertModel:
    """Build and fill the first layers."""
    bert, info = loading(name, _Layers.from_pretrained)(
        directory,
        num_hidden_layers=layers,
        add_pooling_layer=False,
        dtype=torch.float32,
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(name, "the model must hold the encoder's weights", f"{len(missing)} missing, as {missing[0]}", "Use a whole BERT checkpoint.")
    assert isinstance(bert, BertModel)
    return bert
