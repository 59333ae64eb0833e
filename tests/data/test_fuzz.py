"""Damaged files: whatever a flipped byte or a cut does, no worker is lost for good and no token is silently wrong."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anndata
import h5py
import numpy as np
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

Make = Callable[..., Path]


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
    path = folder / f"mutant-{seed}.h5ad"
    path.write_bytes(mutate(original.read_bytes(), seed))
    config = TokenizeConfig(source=(str(path),), vocabulary="unused", output="unused", obs_columns=("kind",))
    plan = describe_source(str(path), config, vocabulary)
    options = TokenizeOptions(vocabulary, "X", None, None, 16, plan.obs_kinds)
    rows: list[list[int]] = []
    for unit in plan_units([plan], options, 32):
        part = make_part(unit, TokenizeWorker(options), str(folder / f"out-{seed}"))
        rows += pq.read_table(folder / f"out-{seed}" / part.path)["input_ids"].to_pylist()
    return rows


def reference(path: Path, vocabulary: GeneVocabulary) -> list[list[int]]:
    """Tokenize what plain h5py reads of a file: changed counts or gene names show in it, as they should."""
    with h5py.File(path) as file:
        node, var = file["X"], file["var"]
        shape = tuple(node.attrs["shape"])
        x = sparse.csr_matrix((node["data"][:], node["indices"][:], node["indptr"][:]), shape=shape)
        names = [name.decode() for name in var[var.attrs["_index"]][:]]
    x.sum_duplicates()
    tokens = np.array([vocabulary.genes.get(gene, -1) for gene in names], np.int32)
    genes = ColumnGenes(tokens, vocabulary.median_of_token[tokens])
    cells = encode_rows(x.data, x.indices, x.indptr, genes, vocabulary.layout(16))
    rows = [cells.input_ids[a:b].tolist() for a, b in zip(cells.offsets[:-1], cells.offsets[1:], strict=True)]
    return [row for row in rows if row]


@pytest.mark.parametrize("mutants", [60, pytest.param(1000, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_mutants(
    ray_session: None,
    make_h5ad: Make,
    vocabulary: GeneVocabulary,
    tmp_path: Path,
    mutants: int,
    compression: str | None,
) -> None:
    original = make_h5ad(cells=70)
    anndata.read_h5ad(original).write_h5ad(original, compression=compression)
    try_one = partial(tokenize_mutant, original=original, folder=tmp_path, vocabulary=vocabulary)
    seen = Counter[str]()
    right = reference(original, vocabulary)
    for seed, found in call_guarded(try_one, range(mutants), subject=lambda seed: f"mutant-{seed}", time_limit_s=60):
        path = tmp_path / f"mutant-{seed}.h5ad"
        if isinstance(found, InputError):
            seen["crashed" if "crash" in found.rule else "refused"] += 1
        elif found == right:
            seen["unharmed"] += 1
        else:
            assert found == reference(path, vocabulary), f"mutant {seed}: tokens are wrong and nobody said so"
            seen["other counts"] += 1
        path.unlink(missing_ok=True)
    print(dict(seen))  # noqa: T201
    assert seen["refused"] > mutants / 10
    assert seen["unharmed"] > 0
    assert sum(seen.values()) == mutants
