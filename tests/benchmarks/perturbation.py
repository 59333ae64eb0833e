"""Deletion of every gene of a cell with V1: ours against the edited rows through BertForMaskedLM, 16 at a time.

The baseline is what a user would write: hidden states of all layers, and logits, which BertForMaskedLM computes with
them. Similarities must be equal. Peak memory is taken in a process of its own for each way: the high-water mark of the
resident set (VmHWM) over a few batches, less the resident set before, the model loaded and one small cell done. At
last a small screen on one and on two actors, in turns, whose tables must be the same to the last bit.
"""

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import spearmanr
from torch.nn.functional import cosine_similarity
from transformers import BertForMaskedLM, BertModel

from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.infer.perturbed import Perturber
from cellray.infer.replicas import TOKEN_BUDGET
from cellray.infer.screen import ScreenConfig, screen
from cellray.model.block_attention import in_precision
from cellray.model.checkpoint import save_model
from cellray.model.encoder import CellEncoder
from cellray.model.masked_lm import new_masked_lm
from cellray.model.presets import bert_config
from cellray.perturbation import Copies, Delete, perturb_cell
from cellray.shift_schema import ShiftManifest
from cellray.train.throughput import peak_memory_bytes
from cellray.vocabulary import GeneVocabulary
from tests.benchmarks.compare import in_turns

V1_GENES, BATCH, ROUNDS = 25_424, 16, 5
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CASES = [(256, 256, "float32", 3.5), (1024, 64, "float32", 2.0), (1024, 64, "bf16", 3.5), (1024, 64, "fp16", 3.5)]
"""Genes of the cell, how many of them are deleted in a round, precision, target."""
MEMORY = 0.25
WAYS = ("ours", "transformers")
SCREEN_CELLS, SCREEN_GENES, ACTORS = 20, 200, 1.7
FAST = {"bf16": "avx512_bf16", "fp16": "avx512_fp16"}
"""What a processor must be able to do, as Linux names it."""
CPU_FLAGS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []


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


def compare(tokens: int, copies: int, precision: str, target: float, rounds: int) -> None:
    """Check, time and weigh one case."""
    cell = Deletions(tokens, copies, precision)
    perturber = cell.perturber()
    ours, theirs = cell.ours(perturber), cell.baseline()
    difference = float(np.abs(ours - theirs).max())
    print(f"V1, {copies} deletions of a cell of {tokens:,} genes, {precision}, {torch.get_num_threads()} threads")
    print(f"  largest difference {difference:.1e}, Spearman {spearmanr(ours, theirs).statistic:.5f} with float32")
    if precision == "float32":
        assert difference < 1e-5
    timing = in_turns(lambda: cell.ours(perturber), cell.baseline, rounds)
    print(
        f"  {copies / timing.ours:.1f} against {copies / timing.baseline:.1f} copies/s: {timing.ratio:.2f} x "
        f"({timing.lowest:.2f} to {timing.highest:.2f} in {rounds} rounds; target {target} x)"
    )
    if Path("/proc/self/statm").exists():
        mine, baseline = (peak(way, tokens, precision) for way in WAYS)
        share = mine / baseline
        print(f"  peak memory above the model {mine:,.0f} MB against {baseline:,.0f} MB: {share:.2f} (target {MEMORY})")


def peak(way: str, tokens: int, precision: str) -> float:
    """Return the peak memory of a way above what was there before it, in MB."""
    command = [sys.executable, "-m", "tests.benchmarks.perturbation", "--memory-of", way]
    arguments = ["--tokens", str(tokens), "--precision", precision]
    out = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])


def print_peak(way: str, tokens: int, precision: str) -> None:
    """Do two batches of the baseline's in this process, one way, and print the peak."""
    cell, small = Deletions(tokens, 2 * BATCH, precision), Deletions(8, 8, precision)
    perturber = cell.perturber()
    work = {"ours": lambda each: each.ours(perturber), "transformers": Deletions.baseline}[way]
    small.whole = cell.whole
    work(small)  # makes the libraries' buffers
    if way == "ours":
        del cell.whole, small.whole
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what comes would fit into what is free, and nothing were seen
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    work(cell)
    print((peak_memory_bytes(torch.device("cpu")) - before) / 1e6)


def made_corpus(folder: Path) -> ScreenConfig:
    """Write V1 with random weights and a corpus of made-up cells of a few genes, and return a screen of them."""
    vocabulary = GeneVocabulary.from_medians({f"ENSG{i:011d}": 1.0 for i in range(V1_GENES)}, "v1", "ensembl")
    vocabulary.save(str(folder / "vocabulary.json"))
    rng = np.random.default_rng(0)
    x_ng = np.zeros((SCREEN_CELLS, SCREEN_GENES * 4), np.float32)
    for row in x_ng:
        row[rng.choice(len(row), SCREEN_GENES, replace=False)] = rng.permutation(SCREEN_GENES) + 1
    genes = pd.DataFrame(index=list(vocabulary.genes)[: x_ng.shape[1]])
    cells = pd.DataFrame(index=[f"cell{i}" for i in range(SCREEN_CELLS)])
    anndata.AnnData(sparse.csr_matrix(x_ng), obs=cells, var=genes).write_h5ad(folder / "cells.h5ad")
    source, corpus = (str(folder / "cells.h5ad"),), str(folder / "corpus")
    tokenize_corpus(TokenizeConfig(source=source, vocabulary=str(folder / "vocabulary.json"), output=corpus))
    save_model(new_masked_lm("v1-10m", vocabulary, 2048, 0), vocabulary, {}, str(folder / "model"))
    return ScreenConfig(
        corpus=corpus, model=str(folder / "model"), output="", threads=1, cells_per_part=1, cpus_per_actor=0.5
    )


def shifts(config: ScreenConfig) -> pa.Table:
    """Run a screen and return its table, sorted."""
    manifest = screen(config)
    assert isinstance(manifest, ShiftManifest)
    tables = [pq.read_table(part.uri_in(config.output)) for part in manifest.parts]
    return pa.concat_tables(tables).sort_by([("cell_id", "ascending"), ("perturbation", "ascending")])


def compare_actors(rounds: int) -> None:
    """Time a screen on one and on two actors of one thread each; their start is in it."""
    with tempfile.TemporaryDirectory() as name:
        config = made_corpus(Path(name))
        seconds: dict[int, list[float]] = {1: [], 2: []}
        tables = []
        for turn in range(rounds):
            for actors, taken in seconds.items():
                changes = {"output": f"{name}/{actors}_{turn}", "actors": (actors, actors)}
                began = time.perf_counter()
                tables.append(shifts(config.model_copy(update=changes)))
                taken.append(time.perf_counter() - began)
        assert all(table.equals(tables[0]) for table in tables), "tables differ"
    one, two = (statistics.median(each) for each in seconds.values())
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(
        f"{SCREEN_CELLS} cells x all of {SCREEN_GENES} genes: {one:.0f} s on one actor, {two:.0f} s on two: "
        f"{ratio:.2f} x (target {ACTORS} x); the tables are the same to the last bit"
    )


def main() -> None:
    """Compare all cases, or print the memory of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-of", choices=WAYS)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=("rows", "actors"))
    chosen = parser.parse_args()
    if chosen.memory_of:
        print_peak(chosen.memory_of, chosen.tokens, chosen.precision)
        return
    if chosen.only != "actors":
        for tokens, copies, precision, target in CASES:
            if precision == "float32" or FAST[precision] in CPU_FLAGS:
                compare(tokens, copies, precision, target, chosen.rounds)
            else:
                print(f"{precision}: this processor does not compute in it")
    if chosen.only != "rows":
        compare_actors(max(1, chosen.rounds // 3))


if __name__ == "__main__":
    main()
