"""Deletion of every gene of a cell with V1: ours against the edited rows through BertForMaskedLM, 16 at a time.

The baseline is what a user would write: hidden states of all layers, and logits, which BertForMaskedLM computes with
them. Similarities must be equal. Peak memory is taken in a process of its own for each way: the high-water mark of the
resident set (VmHWM) over a few batches, less the resident set before, the model loaded and one small cell done. At
last a small screen on one and on two actors, in turns, whose tables must be the same to the last bit.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cosine_similarity
from transformers import BertForMaskedLM

from cellray.infer.perturbed import Perturber
from cellray.infer.replicas import TOKEN_BUDGET
from cellray.model.block_attention import in_precision
from cellray.model.encoder import CellEncoder
from cellray.model.presets import bert_config
from cellray.perturbation import Copies, Delete, perturb_cell
from cellray.vocabulary import GeneVocabulary

V1_GENES, BATCH, ROUNDS = 25_424, 16, 5
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CASES = [(256, 256, "float32", 3.5), (1024, 64, "float32", 2.0), (1024, 64, "bf16", 3.5)]
"""Genes of the cell, how many of them are deleted in a round, precision, target."""
MEMORY = 0.25
WAYS = ("ours", "transformers")


class Deletions:
    """A cell, the genes of it that are deleted one by one, spread over its ranks, and V1 with random weights."""

    def __init__(self, tokens: int, copies: int, precision: str) -> None:
        torch.manual_seed(0)
        self.vocabulary = GeneVocabulary.from_medians({f"ENSG{i:011d}": 1.0 for i in range(V1_GENES)}, "v1", "ensembl")
        self.whole = BertForMaskedLM(bert_config("v1-10m", self.vocabulary, 2048)).eval()
        self.genes_n = (np.random.default_rng(0).choice(V1_GENES, tokens, replace=False) + 2).astype(np.uint16)
        self.rank_p = np.linspace(0, tokens - 1, copies).astype(int)
        self.precision = precision

    def perturber(self) -> Perturber:
        """Return ours, of the same weights."""
        from transformers import BertModel

        config = bert_config("v1-10m", self.vocabulary, 2048)
        config.num_hidden_layers -= 1
        bert = BertModel(config, add_pooling_layer=False)
        bert.load_state_dict(self.whole.bert.state_dict(), strict=False)
        encoder = CellEncoder(bert, 0).eval()
        in_precision(bert, DTYPES[self.precision])
        layout = self.vocabulary.layout(2048)
        return Perturber(encoder, "cell", self.vocabulary, layout, {}, TOKEN_BUDGET["cpu"])

    def copies(self) -> list[Copies]:
        """Return the cell without one gene each."""
        listed = self.genes_n[self.rank_p].astype(np.int32)[:, None]
        return list(perturb_cell(self.genes_n, listed, Delete(), 2048, len(self.vocabulary)))

    def ours(self, perturber: Perturber) -> NDArray[np.float32]:
        """Return the similarity of each copy."""
        return perturber.measure([(self.genes_n, self.copies())]).similarity_r

    @torch.inference_mode()
    def baseline(self) -> NDArray[np.float32]:
        """Return the same through transformers."""
        ids_n = torch.from_numpy(self.genes_n.astype(np.int64))
        before_nd = self._hidden(ids_n[None])[0]
        found = []
        for start in range(0, len(self.rank_p), BATCH):
            ranks = self.rank_p[start : start + BATCH]
            kept = torch.from_numpy(np.stack([np.delete(np.arange(len(ids_n)), rank) for rank in ranks]))
            after_bld = self._hidden(ids_n[kept])
            found.append(cosine_similarity(after_bld, before_nd[kept], dim=2).mean(1))
        return torch.cat(found).numpy()

    def _hidden(self, ids_bl: torch.Tensor) -> torch.Tensor:
        out = self.whole(ids_bl, attention_mask=torch.ones_like(ids_bl), output_hidden_states=True)
        return out.hidden_states[-2]  # type: ignore[no-any-return]
