"""Screens on Ray: the shifts of plain forward passes, the same however the work is cut, resumed, refused."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import BertModel

from cellray.data.corpora.corpus import Corpus
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.errors import InputError
from cellray.infer import cutting
from cellray.infer.choice import draw_evenly, draw_with_donors_first
from cellray.infer.screen import ScreenConfig, ScreenPlan, screen
from cellray.model.checkpoint import save_model
from cellray.model.masked_lm import new_masked_lm
from cellray.shift_schema import ShiftManifest
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES

CELLS = 24


@pytest.fixture
def config_of(
    make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path, ray_session: None
) -> Callable[..., ScreenConfig]:
    """Return a maker of configurations over a corpus of two states and four donors, and an untrained model."""
    vocabulary.save(str(tmp_path / "v.json"))
    obs = {"state": ["sick", "well", "other"] * (CELLS // 3), "donor": [f"d{i % 4}" for i in range(CELLS)]}
    source = (str(make_h5ad(cells=CELLS, obs=obs)),)
    corpus = str(tmp_path / "corpus")
    columns = ("state", "donor")
    tokenize_corpus(
        TokenizeConfig(source=source, vocabulary=str(tmp_path / "v.json"), output=corpus, obs_columns=columns)
    )
    save_model(new_masked_lm("tiny", vocabulary, 16, 0), vocabulary, {}, str(tmp_path / "model"))

    def make(name: str, **changes: object) -> ScreenConfig:
        values = {"corpus": corpus, "model": str(tmp_path / "model"), "output": str(tmp_path / name), "threads": 1}
        return ScreenConfig(**(values | changes))  # type: ignore[arg-type]

    return make


def table_of(config: ScreenConfig, manifest: ShiftManifest) -> pd.DataFrame:
    parts = [pq.read_table(Path(config.output) / part.path).to_pandas() for part in manifest.parts]
    return pd.concat(parts).sort_values(["cell_id", "perturbation"]).reset_index(drop=True)


def run(config: ScreenConfig) -> tuple[ShiftManifest, pd.DataFrame]:
    manifest = screen(config)
    assert isinstance(manifest, ShiftManifest)
    return manifest, table_of(config, manifest)


def test_shifts_are_those_of_plain_forward_passes(config_of: Callable[..., ScreenConfig]) -> None:
    states = {"state_column": "state", "start": "sick", "goal": "well", "alternatives": ("other",)}
    config = config_of("shifts", **states, actors=(0, 0))
    manifest, table = run(config)
    corpus = Corpus.open(config.corpus)
    cells = corpus.ray_dataset().to_pandas()
    bert = BertModel.from_pretrained(config.model, add_pooling_layer=False).eval()

    def hidden(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return bert(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2][0]  # type: ignore[no-any-return]

    embedded = {
        name: torch.stack([hidden(list(i)).mean(0) for i in own["input_ids"]]) for name, own in cells.groupby("state")
    }
    state = {name: rows.mean(0) for name, rows in embedded.items()}
    sick = cells[cells["state"] == "sick"]
    assert manifest.skipped == {"not of the start state": 2 * CELLS // 3}
    assert len(table) == sum(len(ids) for ids in sick["input_ids"])
    for _, row in table.sample(25, random_state=0).iterrows():
        ids = list(sick.set_index("cell_id").loc[row["cell_id"], "input_ids"])
        token = corpus.vocabulary.genes[row["genes"]]
        assert row["perturbation"] == token
        assert row["rank"] == ids.index(token)
        assert row["cell_genes"] == len(ids)
        edited = [other for other in ids if other != token]
        before, after = hidden(ids), hidden(edited)
        kept = before[[i for i, other in enumerate(ids) if other != token]]
        assert row["similarity"] == pytest.approx(float(cosine_similarity(after, kept).mean()), abs=1e-5)
        for name, centre in state.items():
            shift = cosine_similarity(after.mean(0), centre, dim=0) - cosine_similarity(before.mean(0), centre, dim=0)
            assert row[f"shift:{name}"] == pytest.approx(float(shift), abs=1e-5)
    assert set(table.columns) >= {"donor", "state"}
    again = screen(config)
    assert again == manifest


def bits(table: pd.DataFrame) -> dict[str, list[object]]:
    """Return a table in which NaN equals NaN, and numbers nothing but themselves."""
    floats = table.select_dtypes("float32").columns
    return {
        name: (table[name].to_numpy().view(np.uint32) if name in floats else table[name]).tolist() for name in table
    }


STATES = {"state_column": "state", "start": "sick", "goal": "well"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(STATES, id="all"),
        pytest.param({"kind": "overexpress", "genes": (GENES[3],)}, id="one gene", marks=pytest.mark.chaos),
    ],
)
def test_tables_are_the_same_to_the_last_bit(
    config_of: Callable[..., ScreenConfig], monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    monkeypatch.setattr(cutting, "TOGETHER", 4)  # else all cells of this corpus are one group
    here = {"actors": (0, 0), "token_budget": 64}
    manifest, table = run(config_of("one", **changes, **here))
    several = {"actors": (2, 2), "cpus_per_actor": 0.5, "token_budget": 64}
    cut, other = run(config_of("cut", **changes, **several, cells_per_part=5))
    assert len(cut.parts) > len(manifest.parts)
    assert bits(table) == bits(other)
    monkeypatch.setattr("cellray.infer.screen_plan._COPIES_PER_UNIT", 8)
    small, third = run(config_of("small", **changes, **here))
    assert len(small.parts) > len(manifest.parts)
    assert bits(table) == bits(third)
    counts = manifest.parts[0].counts
    assert counts["copies computed again in higher precision"] == 4
    assert counts["largest noise of a similarity x 1e9"] < 1e-5 * 1e9
    assert counts["distance from 1 of an unperturbed copy x 1e9"] < 1e-5 * 1e9


def test_pairs_and_effects_in_pieces(config_of: Callable[..., ScreenConfig]) -> None:
    genes = tuple(GENES[i] for i in (0, 3, 7, 12))
    base = {"kind": "overexpress", "genes": genes, "pairs": True, "effects": True}
    manifest, table = run(config_of("one", **base, actors=(0, 0)))
    assert set(table["genes"]) == {*genes, *("|".join(p) for p in combinations(genes, 2))}
    cut, other = run(config_of("cut", **base, cells_per_part=3, actors=(0, 0)))
    assert len(cut.parts) > len(manifest.parts)
    assert bits(table) == bits(other)
    effects = sum(part.rows for part in cut.effect_parts)
    assert effects == sum(part.rows for part in manifest.effect_parts)
    assert effects > len(table)


def test_a_plan_costs_nothing_and_a_draw_is_even_over_donors(config_of: Callable[..., ScreenConfig]) -> None:
    config = config_of("dry", dry_run=True, max_cells=8, donor="donor", max_perturbations=5)
    plan = screen(config)
    assert isinstance(plan, ScreenPlan)
    assert not Path(config.output).exists()
    assert plan.chosen_n.sum() == 8
    assert plan.skipped == {"beyond --max-cells": CELLS - 8}
    assert plan.copies <= 40
    donors = np.arange(CELLS) % 4
    assert np.bincount(donors[plan.chosen_n]).tolist() == [2, 2, 2, 2]
    few = draw_evenly(np.arange(10), np.array([0] * 8 + [1, 2]), 5, seed=3)
    assert set(few) >= {8, 9}


def test_cells_without_a_donor_take_no_places_of_cells_with_one() -> None:
    """Cells 0 to 5 have no donor, 6 to 8 donor 0, 9 and 10 donor 1."""
    cells, donor_n = np.arange(11), np.array([-1] * 6 + [0] * 3 + [1] * 2, np.int32)
    for most, unknown in ((2, 0), (4, 0), (5, 0), (7, 2), (11, 6)):
        drawn = draw_with_donors_first(cells, donor_n, most, seed=3)
        assert (len(set(drawn)), (drawn < 6).sum()) == (most, unknown)
        assert drawn.tolist() == sorted(drawn)
    known = np.array([0, 1] * 5 + [2], np.int32)
    assert draw_with_donors_first(cells, known, 5, 3).tolist() == draw_evenly(cells, known, 5, 3).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genes": ("ENSG9",)}, "every gene must be in the vocabulary; found 'ENSG9'"),
        ({"genes": (GENES[1], GENES[1])}, "a gene may be listed once only"),
        ({"pooling": "cls"}, "the vocabulary must have <cls>"),
        ({"state_column": "state", "start": "sick", "goal": "dead"}, "--goal must be a state with cells; found 'dead'"),
        ({"layer": -9}, "--layer must lie in -3..0"),
        ({"genes": ("all",), "together": True}, "--genes all: is not for --together and --pairs"),
    ],
)
def test_bad_input(config_of: Callable[..., ScreenConfig], changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        screen(config_of("bad", **changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "a"}, "--state-column, --start and --goal go together"),
        ({"state_column": "s", "start": "a", "goal": "a"}, "must be different states"),
        ({"effects": True, "pooling": "cls"}, "--effects needs --pooling cell"),
    ],
)
def test_options_that_do_not_go_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScreenConfig(corpus="c", model="m", output="o", **changes)  # type: ignore[arg-type]
