"""Uses the installed library on tiny cells, as a notebook would; run by `check_wheel` where there is no checkout.

Needs nothing but what `pip install` of the wheel brings.
"""

import importlib.util
import sys
import tempfile
from importlib.metadata import distribution, files
from importlib.resources import files as resources
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
import transformers
from scipy import sparse
from transformers import BertConfig, BertForMaskedLM, BertModel

import cellray
from cellray import embed, perturb
from cellray.model.checkpoint import save_model
from cellray.vocabulary import GeneVocabulary

GENES = [f"ENSG{i:011d}" for i in range(1, 21)]


def check_package() -> None:
    """Check that the wheel holds the library, its licence and its types, and nothing else."""
    held = files("cellray") or []
    top = {path.parts[0] for path in held}
    assert top == {"cellray", f"cellray-{cellray.__version__}.dist-info"}, top
    assert any(path.name == "LICENSE" for path in held), "no licence"
    assert resources("cellray").joinpath("py.typed").is_file(), "no py.typed"
    said = distribution("cellray").metadata
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Version"] == cellray.__version__
    for name in ("jobs", "serving", "tests"):
        assert importlib.util.find_spec(name) is None, f"{name} belongs to the checkout"
    assert Path(cellray.__file__).is_relative_to(sys.prefix), cellray.__file__


def check_library(folder: Path) -> None:
    """Check embeddings against plain transformers, and that a perturbation gives a row for each cell with the gene."""
    rng = np.random.default_rng(0)
    counts = np.stack([rng.permutation(len(GENES)) for _ in range(5)]).astype(np.float32)  # no two genes of a rank
    counts[:, 0] += len(GENES)
    cells = anndata.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=GENES))
    cells.obs_names = [f"cell{i}" for i in range(5)]
    vocabulary = GeneVocabulary.from_medians(dict.fromkeys(GENES, 1.0), "v1", "ensembl", input_size=20)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=20, pad_token_id=0, **sizes)
    model = str(folder / "model")
    save_model(BertForMaskedLM(config), vocabulary, {}, model)
    embedding_nd = embed(cells, model, layer=0)
    bert = BertModel.from_pretrained(model, add_pooling_layer=False).eval()
    for row, count in enumerate(counts):
        order = np.argsort(-count, kind="stable")[: (count > 0).sum()]
        ids = torch.tensor([[vocabulary.genes[GENES[i]] for i in order]])
        with torch.inference_mode():
            expected = bert(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(embedding_nd[row], expected, atol=1e-5)
    assert embedding_nd.shape == (5, 8)
    table = perturb(cells, model, genes=[GENES[0]])
    assert len(table) == 5, table
    assert ((table["similarity"] > -1) & (table["similarity"] < 1)).all(), table


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    check_package()
    with tempfile.TemporaryDirectory() as name:
        check_library(Path(name))
    print(f"cellray {cellray.__version__} from {Path(cellray.__file__).parent}: embed and perturb work")
