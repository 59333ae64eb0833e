"""Prefiltered screens on Ray: exact values of few perturbations, the same however the work is cut; what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.infer.perturbation_stats import PerturbationStatsConfig, perturbation_stats
from cellray.infer.perturbed import Perturber
from cellray.infer.screen import ScreenConfig, screen
from cellray.infer.screen_plan import ScreenPlan
from cellray.infer.states import state_embeddings
from cellray.model.checkpoint import ModelDirectory
from cellray.model.encoder import load_encoder
from cellray.perturbation import Delete, perturb_cell
from cellray.prefilter_schema import PrefilterManifest
from cellray.shift_schema import shift_column
from tests.infer.test_screen import CELLS, bits, config_of

__all__ = ["config_of"]  # a fixture of another file


def prefiltered(config: ScreenConfig) -> tuple[PrefilterManifest, pd.DataFrame]:
    manifest = screen(config)
    assert isinstance(manifest, PrefilterManifest)
    parts = [pq.read_table(Path(config.output) / part.path).to_pandas() for part in manifest.parts]
    return manifest, pd.concat(parts).sort_values(["cell_id", "perturbation"]).reset_index(drop=True)


def whole_screen(config: ScreenConfig) -> pd.DataFrame:
    """Delete every gene of every cell of the start state, without a cluster."""
    corpus = Corpus.open(config.corpus)
    cells = read_cells(corpus)
    states = state_embeddings(config, corpus)  # they are there
    vocabulary, encoder = corpus.vocabulary, load_encoder(ModelDirectory.open(config.model), config.layer)
    perturber = Perturber(encoder, "cell", vocabulary, vocabulary.layout(16), states, 2048)
    frames = []
    for cell_id, ids in cells[cells["state"] == config.start].set_index("cell_id")["input_ids"].items():
        copies = list(perturb_cell(ids, ids[:, None].astype(np.int32), Delete(), 16, len(vocabulary)))
        found = perturber.measure([(ids, copies)])
        genes = [vocabulary.gene_of_token[int(token)] for token in ids[found.number_r]]
        values = {
            "similarity": found.similarity_r,
            **dict(zip(map(shift_column, states), found.shift_rs.T, strict=True)),
        }
        frames.append(pd.DataFrame({"cell_id": cell_id, "perturbation": ids[found.number_r], "genes": genes, **values}))
    return pd.concat(frames)


def read_cells(corpus: Corpus) -> pd.DataFrame:
    columns = ["cell_id", "state", "input_ids"]
    parts = [pq.read_table(corpus.part_uri(part), columns=columns) for part in corpus.manifest.parts]
    return pd.concat([part.to_pandas() for part in parts])


def test_few_exact_values_of_a_screen(config_of: Callable[..., ScreenConfig]) -> None:
    states = {"state_column": "state", "start": "sick", "goal": "well"}
    few = {"exact": False, "evaluate": 3, "sample": 4, "top": 3, "seed": 5}
    config = config_of("few", **states, **few, actors=0)
    plan = screen(config.model_copy(update={"dry_run": True}))
    assert isinstance(plan, ScreenPlan)
    assert plan.copies <= 7 * CELLS // 3
    manifest, table = prefiltered(config)
    whole = whole_screen(config)
    both = table.merge(whole, on=["cell_id", "perturbation"], suffixes=("", "_whole"), validate="1:1")
    assert len(both) == len(table) < 0.7 * len(whole)
    for column in ("similarity", "shift:well"):
        assert np.abs(both[column] - both[f"{column}_whole"]).max() < 1e-6
    chosen = table[table["choice"] == "chosen"]
    assert (chosen["inclusion_probability"] == 1).all()
    detections = whole["genes"].value_counts()
    assert chosen["genes"].value_counts().to_dict().items() <= detections.to_dict().items()
    assert chosen["genes"].size <= 3 * CELLS // 3
    assert table["inclusion_probability"][table["choice"] == "sampled"].between(0, 1).all()
    genes = pd.read_parquet(Path(config.output) / "genes.parquet").set_index("Ensembl_ID")
    genes_csv = (Path(config.output) / "genes.csv").read_bytes()
    assert genes_csv.count(b"\n") == len(genes) + 1
    assert genes["N_Detections"].to_dict() == detections.to_dict()
    exact = genes[genes["How"] == "chosen"]
    truth = whole.groupby("genes")["shift:well"].mean()
    assert exact["Value"].to_numpy() == pytest.approx(truth[exact.index].to_numpy(), abs=1e-6)
    assert genes.loc[genes["How"] == "bound", "Value"].isna().all()
    assert manifest.report["rank correlation of estimates"]["rows"] == (table["choice"] == "sampled").sum()
    assert manifest.report["forward passes"]["whole screen"] == len(whole)
    assert screen(config) == manifest

    shutil.copytree(f"{config.output}.states", Path(config.output).parent / "cut.states")  # saves time
    cut, other = prefiltered(config_of("cut", **states, **few, cells_per_part=3, actors=(2, 2), cpus_per_actor=0.5))
    assert len(cut.parts) > len(manifest.parts)
    assert bits(other) == bits(table)
    assert (Path(config.output).parent / "cut" / "genes.csv").read_bytes() == genes_csv
    with pytest.raises(InputError, match="must be perturbation shifts; found prefiltered perturbation shifts"):
        perturbation_stats(
            PerturbationStatsConfig(shifts=config.output, mode="goal_state_shift", output=f"{config.output}.statistics")
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "inhibit"}, "--kind must be one of delete, overexpress, not inhibit"),
        ({"genes": ("ENSG1",)}, "it needs --genes all"),
        ({"effects": True}, "goes without --effects"),
        ({"kind": "overexpress"}, "needs a goal state"),
    ],
)
def test_options_that_there_are_no_estimates_for(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScreenConfig(corpus="c", model="m", output="o", exact=False, **changes)  # type: ignore[arg-type]
