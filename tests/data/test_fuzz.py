"""Damaged files: whatever a flipped byte or a cut does, no worker is lost for good and no token is silently wrong."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from cellray.data.guarded import call_guarded
from cellray.data.parts import make_part
from cellray.data.plan import describe_source
from cellray.data.tokenization import TokenizeConfig, TokenizeOptions, TokenizeWorker, plan_units
from cellray.errors import InputError
from cellray.rank_value import ColumnGenes, encode_rows
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES, random_counts
from tests.data.test_formats import loom, tenx_h5


def mutate(whole: bytes, seed: int) -> bytes:
    """Cut a file, or change one to eight of its bytes; a third of the changes go to the file's first 2 KB."""
    rng = np.random.default_rng(seed)
    if seed % 5 == 0:
        return whole[: rng.integers(0, len(whole))]
    data = bytearray(whole)
    for _ in range(rng.integers(1, 9)):
        where = rng.integers(0, 2048 if rng.random() < 1 / 3 else len(data))
        data[where] = rng.integers(0, 256)
    return bytes(data)


def tokenize_mutant(seed: int, original: Path, folder: Path, vocabulary: GeneVocabulary) -> list[list[int]]:
    """Describe and tokenize one mutant as the job would; return its token rows."""
    path = folder / f"mutant-{seed}{original.suffix}"
    path.write_bytes(mutate(original.read_bytes(), seed))
    columns = () if original.suffix == ".h5" else ("kind",)
    config = TokenizeConfig(source=(str(path),), vocabulary="unused", output="unused", obs_columns=columns)
    plan = describe_source(str(path), config, vocabulary)
    options = TokenizeOptions(vocabulary, "X", None, None, 16, plan.obs_kinds)
    rows: list[list[int]] = []
    for unit in plan_units([plan], options, 32):
        part = make_part(unit, TokenizeWorker(options), str(folder / f"out-{seed}"))
        rows += pq.read_table(folder / f"out-{seed}" / part.path)["input_ids"].to_pylist()
    return rows


def read_plainly(path: Path) -> tuple[sparse.csr_matrix, list[str]]:
    """Return counts, cells x genes, and gene names as plain h5py reads them."""
    with h5py.File(path) as file:
        if path.suffix == ".loom":
            return sparse.csr_matrix(file["matrix"][:].T), [name.decode() for name in file["row_attrs/Accession"][:]]
        tenx = path.suffix == ".h5"
        node = file["matrix" if tenx else "X"]
        arrays = node["data"][:], node["indices"][:], node["indptr"][:]
        if tenx:
            features = file["matrix/features"]
            pairs = zip(features["id"][:], features["feature_type"][:], strict=True)
            names = [name.decode() if kind == b"Gene Expression" else "" for name, kind in pairs]
            return sparse.csr_matrix(arrays, shape=tuple(node["shape"][:][::-1])), names
        matrix = sparse.csc_matrix if node.attrs["encoding-type"] == "csc_matrix" else sparse.csr_matrix
        names = [name.decode() for name in file["var"][file["var"].attrs["_index"]][:]]
        return matrix(arrays, shape=tuple(node.attrs["shape"])).tocsr(), names


def reference(path: Path, vocabulary: GeneVocabulary) -> list[list[int]]:
    """Tokenize what plain h5py reads of a file: changed counts or gene names show in it, as they should."""
    x, names = read_plainly(path)
    x.sum_duplicates()
    tokens = np.array([vocabulary.genes.get(gene, -1) for gene in names], np.int32)
    genes = ColumnGenes(tokens, vocabulary.median_of_token[tokens])
    cells = encode_rows(x.data, x.indices, x.indptr, genes, vocabulary.layout(16))
    rows = [cells.input_ids[a:b].tolist() for a, b in zip(cells.offsets[:-1], cells.offsets[1:], strict=True)]
    return [row for row in rows if row]


def _h5ad(folder: Path, x: sparse.spmatrix, chunk: int | None = None) -> Path:
    """Write an .h5ad; with chunks, its matrix deflated in small ones."""
    path = folder / "cells.h5ad"
    table = pd.DataFrame({"kind": pd.Categorical(["a", "b"] * 35)}, index=[f"cell{i}" for i in range(70)])
    anndata.AnnData(x, obs=table, var=pd.DataFrame(index=GENES)).write_h5ad(path)
    if chunk is not None:
        with h5py.File(path, "r+") as file:
            for name in ("data", "indices", "indptr"):
                values = file["X"][name][:]
                del file["X"][name]
                file["X"].create_dataset(name, data=values, chunks=(min(chunk, len(values)),), compression="gzip")
    return path


COUNTS = random_counts(70, 40)
WRITERS: dict[str, Callable[[Path], Path]] = {
    "csr": partial(_h5ad, x=COUNTS),
    "csr gzip": partial(_h5ad, x=COUNTS, chunk=10_000),
    "csr gzip chunks": partial(_h5ad, x=COUNTS, chunk=64),
    "csc": partial(_h5ad, x=COUNTS.tocsc()),
    "csc gzip chunks": partial(_h5ad, x=COUNTS.tocsc(), chunk=64),
    "loom gzip chunks": loom,
    "10x h5": tenx_h5,
}


@pytest.mark.parametrize("mutants", [30, pytest.param(300, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("kind", WRITERS)
def test_mutants(ray_session: None, vocabulary: GeneVocabulary, tmp_path: Path, mutants: int, kind: str) -> None:
    (tmp_path / "original").mkdir()
    original = WRITERS[kind](tmp_path / "original")
    try_one = partial(tokenize_mutant, original=original, folder=tmp_path, vocabulary=vocabulary)
    seen = Counter[str]()
    right = reference(original, vocabulary)
    for seed, found in call_guarded(try_one, range(mutants), subject=lambda seed: f"mutant-{seed}", time_limit_s=60):
        path = tmp_path / f"mutant-{seed}{original.suffix}"
        if isinstance(found, InputError):
            unforeseen = found.rule == "a file must be readable"
            assert not unforeseen, f"mutant {seed}: {found}"
            seen["crashed" if "crash" in found.rule else "refused"] += 1
        elif found == right:
            seen["unharmed"] += 1
        else:
            assert found == reference(path, vocabulary), f"mutant {seed}: tokens are wrong and nobody said so"
            seen["other counts"] += 1
        path.unlink(missing_ok=True)
    print(kind, dict(seen))  # noqa: T201
    assert seen["refused"] > mutants / 10
    assert seen["unharmed"] > 0
    assert sum(seen.values()) == mutants
    # deflated data bear a checksum, plain counts are whatever they say
    bound = 0.05 if "gzip" in kind else 0.5
    assert seen["other counts"] <= bound * mutants
