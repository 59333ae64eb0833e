"""The questions people ask: each recipe of a screen as it stands, by its job, with the statistics it names."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from cellray.config import JobConfig, parse_config
from cellray.errors import InputError
from cellray.infer.perturbation_stats import PerturbationStatsConfig, read_table
from cellray.infer.screen import ScreenConfig
from cellray.infer.shift_tables import ShiftTable
from cellray.model.heads import HeadSpec
from cellray.vocabulary import GeneVocabulary
from jobs import perturb, perturbation_stats
from tests.conftest import GENES, random_counts
from tests.data.corpora import tokenized
from tests.infer.test_screen import bits
from tests.infer.tiny import model_in, rows_in

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs" / "tasks"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.toml") if "# python -m jobs.perturb " in path.read_text())
GATA4, TBX5 = "ENSG00000136574", "ENSG00000089225"
NAMED = [GATA4, TBX5, "ENSG00000204531", "ENSG00000181449", "ENSG00000136826", "ENSG00000136997"]
OWN = [*NAMED, *GENES[6:24]]
TYPES = ("progenitor", "cardiomyocyte", "fibroblast", "iPSC")
DISEASE = HeadSpec("disease", "classification", "cell", ("healthy", "sick"))
CELLS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the corpus that the recipes speak of, and a classifier; rows hold all genes of a cell."""
    folder = tmp_path_factory.mktemp("recipes")
    medians = {gene: (i + 1) / 2 for i, gene in enumerate(OWN)}
    vocabulary = GeneVocabulary.from_medians(medians, "v1", "ensembl", input_size=16)
    obs = {
        "cell_type": [TYPES[i % 4] for i in range(CELLS)],
        "disease": [("sick", "healthy")[i // 2 % 2] for i in range(CELLS)],
        "donor": [f"d{i // 4 % 3}" for i in range(CELLS)],
    }
    counts = random_counts(CELLS, len(OWN), seed=3)
    table, var = pd.DataFrame(obs, index=[f"c{i}" for i in range(CELLS)]), pd.DataFrame(index=OWN)
    anndata.AnnData(counts, obs=table, var=var).write_h5ad(folder / "cells.h5ad")
    tokenized([folder / "cells.h5ad"], vocabulary, folder / "corpus", tuple(obs))
    model_in(folder, vocabulary, DISEASE)
    return folder


def commands(recipe: str, job: str) -> list[list[str]]:
    """Return the options of the commands that a recipe's head names."""
    head = re.sub(r"\\\n#\s*", "", (CONFIGS / f"{recipe}.toml").read_text())
    found = [
        shlex.split(line.removeprefix("# ")) for line in head.splitlines() if line.startswith(f"# python -m {job} ")
    ]
    return [words[3:] for words in found]


def run_commands(recipe: str, place: Path, *more: str, name: str = "") -> tuple[Path, list[Path]]:
    """Run a recipe's commands as they stand, the places filled in; return those of the shifts and the tables."""
    made = place / f"{recipe}{name}"
    filled = {"URI": place / "corpus", "DIR": place / "tuned", "MODEL": place / "tuned", "SHIFTS": made}
    tables = []

    def run(job: str, config: type[JobConfig], main: Callable[..., str], *options: str) -> None:
        for words in commands(recipe, f"jobs.{job}"):
            if words[words.index("--output") + 1] != "SHIFTS":
                tables.append(place / f"{recipe}{name}.{len(tables)}")
                words[words.index("--output") + 1] = str(tables[-1])
            argv = [str(filled.get(word, word)).replace("jobs/configs/tasks", str(CONFIGS)) for word in words]
            assert main(parse_config(config, [*argv, *options], f"python -m jobs.{job}"))

    run("perturb", ScreenConfig, perturb.main, *more)
    run("perturbation_stats", PerturbationStatsConfig, perturbation_stats.main)
    assert tables
    return made, tables


def shifts(made: Path) -> pd.DataFrame:
    return rows_in(made, ShiftTable.open(str(made)).manifest.parts)


def test_there_is_a_recipe_for_every_question() -> None:
    tuned = ["finetuned_disease_drivers", "finetuned_treatment"]
    names = "cell_state_impact cooperativity differentiation factor_targets reprogramming"
    assert [*tuned, *(f"zeroshot_{name}" for name in names.split())] == RECIPES
    docs = (CONFIGS.parents[2] / "docs" / "perturbation.md").read_text()
    assert all(f"{recipe}.toml" in docs for recipe in RECIPES)


def test_the_impact_of_each_gene(place: Path) -> None:
    made, (table,) = run_commands("zeroshot_cell_state_impact", place, "--actors", "0")
    rows, found = shifts(made), read_table(str(table)).set_index("Ensembl_ID")
    assert (rows["cell_id"].nunique(), len(rows)) == (CELLS, rows["cell_genes"].groupby(rows["cell_id"]).first().sum())
    detections = rows.groupby("genes").size()
    assert set(found.index) == set(detections.index[detections >= 5])
    means = rows.groupby("genes")["similarity"].mean()
    impact = found["Impact_component"] == 1
    assert means[found.index[impact]].max() <= means[found.index[~impact]].min() + 1e-6  # far from 1 = impact


@pytest.mark.parametrize(
    ("recipe", "start", "end"),
    [("finetuned_treatment", "sick", "healthy"), ("finetuned_disease_drivers", "healthy", "sick")],
)
def test_between_disease_and_health_with_a_classifier(place: Path, recipe: str, start: str, end: str) -> None:
    made, (goal, changes) = run_commands(recipe, place, "--actors", "0")
    rows = shifts(made)
    assert set(rows["disease"]) == {start}
    assert np.allclose(rows["change:disease.probability.sick"], -rows["change:disease.probability.healthy"], atol=1e-6)
    for path, column, measure in (
        (goal, "Shift_to_goal_end", f"shift:{end}"),
        (changes, None, f"change:disease.probability.{end}"),
    ):
        found = read_table(str(path)).set_index("Ensembl_ID")
        own = found[column or next(name for name in found.columns if name.endswith("_mean"))].astype(float)
        assert np.allclose(own, rows.groupby("genes")[measure].mean().reindex(found.index), atol=1e-6)


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_the_same_on_ray(place: Path) -> None:
    here, _ = run_commands("finetuned_treatment", place, "--actors", "0", "--threads", "1", name=".again")
    there, _ = run_commands("finetuned_treatment", place, "--threads", "1", name=".ray")
    assert bits(shifts(here)) == bits(shifts(there))


def test_reprogramming(place: Path) -> None:
    made, (table,) = run_commands("zeroshot_reprogramming", place, "--actors", "0")
    rows = shifts(made)
    assert set(rows["cell_type"]) == {"fibroblast"}
    assert set(rows["genes"]) == {"|".join(NAMED[2:])}
    assert len(rows) == CELLS / 4  # inserted where a cell lacks them
    found = read_table(str(table))
    column = next(name for name in found.columns if name.endswith("_mean"))
    assert found[column].astype(float).tolist() == pytest.approx([rows["shift:iPSC"].mean()], abs=1e-6)


def test_differentiation(place: Path) -> None:
    made, (table,) = run_commands("zeroshot_differentiation", place, "--actors", "0")
    rows, found = shifts(made), read_table(str(table)).set_index("Ensembl_ID")
    assert set(rows["cell_type"]) == {"progenitor"}
    for column, measure in (("Shift_to_goal_end", "cardiomyocyte"), ("Shift_to_alt_end_fibroblast", "fibroblast")):
        means = rows.groupby("genes")[f"shift:{measure}"].mean().reindex(found.index)
        assert np.allclose(found[column].astype(float), means, atol=1e-6)


def test_targets_of_a_transcription_factor(place: Path) -> None:
    made, (table,) = run_commands("zeroshot_factor_targets", place, "--actors", "0")
    manifest = ShiftTable.open(str(made)).manifest
    rows, effects = shifts(made), rows_in(made, manifest.effect_parts)
    assert manifest.lacking is not None
    assert (set(rows["genes"]), len(rows)) == ({GATA4}, CELLS - manifest.lacking.cells)
    found = read_table(str(table)).dropna(subset=["Affected_Ensembl_ID"]).set_index("Affected_Ensembl_ID")
    means, number = (getattr(effects.groupby("affected")["similarity"], how)() for how in ("mean", "size"))
    assert set(found.index) == set(number.index[number >= 5])
    assert GATA4 not in found.index
    column = next(name for name in found.columns if name.endswith("_mean"))
    assert np.allclose(found[column].astype(float), means.reindex(found.index), atol=1e-6)


def test_cooperativity_of_two_factors(place: Path) -> None:
    made, (table,) = run_commands("zeroshot_cooperativity", place, "--actors", "0")
    rows, found = shifts(made), read_table(str(table))
    assert set(rows["genes"]) == {GATA4, TBX5, f"{GATA4}|{TBX5}"}
    wide = rows.pivot_table(index="cell_id", columns="genes", values="similarity").dropna()  # cells with both genes
    assert found["N_Detections"].tolist() == [len(wide)] * 2
    a, b, both = (wide[name].mean() for name in (GATA4, TBX5, f"{GATA4}|{TBX5}"))
    assert found["Anchor_Ensembl_ID"].tolist() == [TBX5, GATA4]
    assert found["Anchor_shift"].astype(float).tolist() == pytest.approx([b, a], abs=1e-6)
    assert found["Sum_of_indiv_shifts"].astype(float).tolist() == pytest.approx([a + b - 1] * 2, abs=1e-6)
    assert found["Combo_minus_sum_shift"].astype(float).tolist() == pytest.approx([both - a - b + 1] * 2, abs=1e-6)
    names = place / "names.csv"
    names.write_text(f"gene_id,symbol\n{GATA4},GATA4\n{TBX5},TBX5\n")
    options = {"shifts": str(made), "mode": "mixture_model", "pairs": True, "gene_names": str(names)}
    config = PerturbationStatsConfig(**options, anchor="TBX5", output=str(place / "anchored"))
    perturbation_stats.main(config)
    assert read_table(config.output)["Anchor_name"].tolist() == ["TBX5"]
    names.write_text(f"gene_id,symbol\n{GATA4},TBX5\n{TBX5},TBX5\n")
    with pytest.raises(InputError, match=rf"a symbol must mean one gene; found TBX5 \({TBX5}, {GATA4}\)"):
        perturbation_stats.main(config.model_copy(update={"output": str(place / "other")}))
