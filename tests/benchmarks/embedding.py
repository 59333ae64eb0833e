"""Embeddings of V1 in float32: this library's encoder against BertForMaskedLM with all hidden states and logits."""

import tempfile

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertForMaskedLM

from cellray.data.collate import TokenRows
from cellray.infer.embed import TOKEN_BUDGET, embed_rows
from cellray.model.checkpoint import ModelDirectory, save_model
from cellray.model.encoder import load_encoder
from cellray.model.pooling import is_gene_token
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary
from tests.benchmarks.compare import in_turns, report

CELLS, TOKENS, BATCH, ROUNDS, V1_GENES = 16, 1024, 8, 5, 25_424


def main() -> None:
    """Check that both give the same embeddings, then time them."""
    vocabulary = GeneVocabulary.from_medians({f"ENSG{i:011d}": 1.0 for i in range(V1_GENES)}, "v1", "ensembl")
    rng = np.random.default_rng(0)
    ids_nl = np.stack([rng.choice(V1_GENES, TOKENS, replace=False) + 2 for _ in range(CELLS)])
    rows = TokenRows(ids_nl.astype(np.uint16).reshape(-1), np.arange(CELLS + 1) * TOKENS)
    gene_v, budget = is_gene_token(vocabulary), TOKEN_BUDGET["cpu"]
    torch.manual_seed(0)
    model = BertForMaskedLM(bert_config("v1-10m", vocabulary, 2048)).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, vocabulary, {}, folder)
        encoder = load_encoder(ModelDirectory.open(folder), -1)

    def ours() -> NDArray[np.float32]:
        return np.stack(embed_rows(encoder, rows, "cell", gene_v, budget))

    def baseline() -> NDArray[np.float32]:
        means = []
        with torch.inference_mode():
            for start in range(0, CELLS, BATCH):
                batch_nl = torch.from_numpy(ids_nl[start : start + BATCH])
                out = model(batch_nl, attention_mask=torch.ones_like(batch_nl), output_hidden_states=True)
                means.append(out.hidden_states[-2].mean(1))
        return torch.cat(means).numpy()

    difference = float(np.abs(ours() - baseline()).max())
    assert difference < 1e-5, f"embeddings differ by {difference}"
    print(f"largest difference of an embedding: {difference:.1e}; {torch.get_num_threads()} threads")
    report(f"embed cells of {TOKENS:,} tokens with V1", CELLS, in_turns(ours, baseline, ROUNDS), 1.7)


if __name__ == "__main__":
    main()
