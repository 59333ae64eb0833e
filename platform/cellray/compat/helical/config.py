"""`GeneformerConfig`: which model, which layer, which embedding. Opens nothing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cellray.compat.options import NUMBER_OF_PROCESSES, Rule, check_options, instance, one_of, whole_number
from cellray.model.pooling import POOLINGS

_LAYER = Rule(
    lambda given: isinstance(given, int) and not isinstance(given, bool) and given <= 0,
    "must be 0 or below",
    "0 is the last hidden state, -1 the second to last, and so on, as in Geneformer.",
)


@dataclass(frozen=True)
class GeneformerConfig:
    """Options of `Geneformer`.

    Parameters
    ----------
    model_name
        A model directory (ours or a released one), an s3:// URI, `models:/NAME@ALIAS`, or the name of a released
        model; see `cellray.compat.official_files`.
    batch_size
        Most cells computed at once; less where that is faster.
    emb_layer
        Hidden state: 0 = last, -1 = second to last, ..., as in Geneformer.
    emb_mode
        `cell` (mean over genes), `cls` (V2 models) or `gene`.
    device
        `cpu`, or anything else for the accelerator that torch finds.
    accelerator
        None, False or {"cpu": True}: `device` says where.
    nproc
        Needs nothing: counts are encoded by one compiled pass.
    custom_attr_name_dict
        Name in the dataset to obs column, of columns to keep. The other way round is understood, too, where only that
        names a column.
    models
        Of ours: names to directories, for `model_name`.
    vocabulary
        Of ours: `vocabulary.json` of a model that has none and whose dictionaries are not found beside it.

    Raises
    ------
    InputError
        An option has a value that cannot be had here.
    """

    model_name: str = "gf-12L-38M-i4096"
    batch_size: int = 24
    emb_layer: int = -1
    emb_mode: str = "cell"
    device: str = "cpu"
    accelerator: bool | Mapping[str, Any] | None = None
    nproc: int = 1
    custom_attr_name_dict: Mapping[str, str] | None = None
    models: Mapping[str, str] | None = None
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        check_options("GeneformerConfig", vars(self), _RULES)

    @property
    def config(self) -> dict[str, Any]:
        """The options by name."""
        return asdict(self)


_RULES = {
    "model_name": instance(str, what="a name or directory"),
    "batch_size": whole_number(1),
    "emb_layer": _LAYER,
    "emb_mode": one_of(*POOLINGS),
    "device": instance(str, what="cpu or the name of an accelerator"),
    "accelerator": one_of(None, False, {"cpu": True}, fix="Leave it out: device says where."),
    "nproc": NUMBER_OF_PROCESSES,
    "custom_attr_name_dict": instance(Mapping, type(None), what="a dict of names or None"),
}
