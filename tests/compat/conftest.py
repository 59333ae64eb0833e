"""Released files as they lie in a clone, with the golden models: what notebooks of other packages start from."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest


def clone(shared: Path, folder: Path, generation: str) -> Path:
    """Lay out the golden model and its dictionaries as the released files are, and return the model's directory."""
    official, golden = shared / "data" / "geneformer_v1", shared / "golden"
    inner = folder / "geneformer" / ("gene_dictionaries_30m" if generation == "v1" else "")
    inner.mkdir(parents=True)
    for name in ("gene_median_dictionary", "gene_name_id_dict"):
        shutil.copy(official / f"{name}.pkl", inner / f"{name}_x.pkl")
    if generation == "v1":
        shutil.copy(official / "token_dictionary.pkl", inner / "token_dictionary_x.pkl")
    else:
        tokens = json.loads((golden / "token_dictionary_v2.json").read_text())
        (inner / "token_dictionary_x.pkl").write_bytes(pickle.dumps(tokens))
    name = {"v1": "gf-6L-30M-i2048", "v2": "gf-12L-95M-i4096"}[generation]
    shutil.copytree(golden / f"model_{generation}", folder / name)
    return folder / name


@pytest.fixture(params=[pytest.param("v1", marks=pytest.mark.chaos), "v2"])
def generation(request: pytest.FixtureRequest) -> str:
    """Each generation of Geneformer."""
    return str(request.param)


def golden_dataset(shared: Path, folder: Path, generation: str) -> Path:
    """Write the five golden cells as an official dataset, shortest first, with a column of states."""
    from datasets import Dataset

    cells = np.load(shared / "golden" / "embeddings.npz")[f"{generation}_cells"]
    tokens = pq.read_table(shared / "golden" / f"tokens_{generation}.parquet").to_pandas().set_index("cell_id")
    rows = [list(tokens["input_ids"][cell]) for cell in cells[::-1]]
    columns = {"input_ids": rows, "length": list(map(len, rows)), "state": ["A"] * 5, "name": list(cells[::-1])}
    Dataset.from_dict(columns).save_to_disk(str(folder / "golden.dataset"))
    return folder / "golden.dataset"
