"""Attention weights as an artefact: against brute force over transformers' eager attention, resumed, bounded, drawn."""

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.image as mpl_image
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertForMaskedLM

from cellray import storage
from cellray.attention_schema import RANK_BINS, AttentionManifest
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.infer import attention_plan
from cellray.infer.attention import AttentionConfig, attention
from cellray.infer.attention_cell import CellAttention, Wanted
from cellray.infer.attention_pictures import draw_attention, times_even
from cellray.infer.attention_sums import HeadSums, Shape
from cellray.infer.attention_tables import Attention, Axes, write_heads
from cellray.model.checkpoint import save_model
from cellray.model.presets import bert_config
from cellray.vocabulary import GeneVocabulary
from jobs.attention import main
from tests.conftest import GENES
from tests.data.corpora import rows_of
from tests.infer.tiny import CELLS, corpus_in

Weights = dict[str, np.ndarray]
"""Cell to layers x heads x queries x keys."""


def model_in(folder: Path, vocabulary: GeneVocabulary) -> str:
    """Write an untrained model whose attention is far from even."""
    torch.manual_seed(0)
    model = BertForMaskedLM(bert_config("tiny", vocabulary, 16))
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight *= 5
            layer.attention.self.key.weight *= 5
    save_model(model, vocabulary, {}, str(folder / "model"))
    return str(folder / "model")


class Made:
    """A corpus and a model, and what eager attention tells of each cell alone."""

    def __init__(self, folder: Path, vocabulary: GeneVocabulary) -> None:
        self.folder, self.vocabulary = folder, vocabulary
        self.corpus, self.model = corpus_in(folder, vocabulary), model_in(folder, vocabulary)
        self.names = {token: gene for gene, token in vocabulary.genes.items()}
        self.names |= {token: name for name, token in vocabulary.special_tokens.items()}
        self.cells = {str(row["cell_id"]): row for row in rows_of(self.corpus)}

    def run(self, name: str = "attention", **options: object) -> AttentionManifest:
        return attention(self.config(name, **options))

    def config(self, name: str, **options: object) -> AttentionConfig:
        values = {"corpus": self.corpus.uri, "model": self.model, "output": str(self.folder / name), "actors": 0}
        return AttentionConfig(**{**values, "cells_per_part": 4, "token_budget": 40, **options})  # type: ignore[arg-type]

    @cached_property
    def eager(self) -> Weights:
        model = BertForMaskedLM.from_pretrained(self.model, attn_implementation="eager").eval()
        found = {}
        for cell, row in self.cells.items():
            with torch.no_grad():
                told = model(input_ids=torch.tensor([row["input_ids"]]), output_attentions=True).attentions
            found[cell] = torch.cat(told).numpy()
        return found

    def genes_of(self, cell: str) -> list[str]:
        return [self.names[token] for token in self.cells[cell]["input_ids"]]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def made_v1(tmp_path_factory: pytest.TempPathFactory) -> Made:
    medians = {gene: (i + 1) / 2 for i, gene in enumerate(GENES[:30])}
    return Made(tmp_path_factory.mktemp("v1"), GeneVocabulary.from_medians(medians, "v1", "ensembl", input_size=16))


@pytest.fixture(scope="module")
def made_v2(tmp_path_factory: pytest.TempPathFactory) -> Made:
    medians = {gene: (i + 1) / 2 for i, gene in enumerate(GENES[:30])}
    return Made(tmp_path_factory.mktemp("v2"), GeneVocabulary.from_medians(medians, "v2", "ensembl", input_size=16))


def weights_of(uri: Path) -> pd.DataFrame:
    return pd.concat([table.to_pandas() for table in Attention.open(str(uri)).weights()], ignore_index=True)


@pytest.mark.parametrize("by", ["cell", "query"])
@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_the_largest_weights_are_those_of_eager_attention(
    made_v1: Made, made_v2: Made, generation: str, by: str
) -> None:
    """Special tokens are told in V2: rank -1, their names."""
    made = {"v1": made_v1, "v2": made_v2}[generation]
    manifest = made.run(f"top_{by}", top_k=5, top_by=by, special_tokens=True)
    found, expected = weights_of(made.folder / f"top_{by}"), made.eager
    assert set(found["cell_id"]) == set(expected)
    maps = len(manifest.layers) * len(manifest.heads)
    assert manifest.counted["weights"] == sum(weights.size for weights in expected.values())
    assert manifest.counted["cells"] == CELLS
    for (cell, layer, head), rows in found.groupby(["cell_id", "layer", "head"], sort=False):
        weight_qk, names = expected[cell][layer, head], made.genes_of(cell)
        special = [name.startswith("<") for name in names]
        rank = np.where(special, -1, np.cumsum(~np.array(special)) - 1)
        place = [(names.index(q), names.index(k)) for q, k in zip(rows["query"], rows["key"], strict=True)]
        np.testing.assert_allclose(rows["weight"], [weight_qk[p] for p in place], atol=1e-6, rtol=0)
        assert [(rank[q], rank[k]) for q, k in place] == list(zip(rows["query_rank"], rows["key_rank"], strict=True))
        if by == "cell":
            largest = np.sort(weight_qk.ravel())[::-1][:5]
        else:
            assert [q for q, _ in place] == np.repeat(np.arange(len(names)), min(5, len(names))).tolist()
            largest = np.sort(weight_qk, axis=1)[:, ::-1][:, :5].ravel()
        np.testing.assert_allclose(rows["weight"], largest, atol=1e-6, rtol=0)
    assert found.groupby(["cell_id", "layer", "head"]).ngroups == CELLS * maps
    assert found["query"].str.startswith("<cls>").any() == (generation == "v2")


def summed(made: Made, genes: set[str], group: str | None) -> dict[tuple[Any, ...], list[float]]:
    """Return by (group, layer, head, query, key) the weights of all cells that have both, in float64."""
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for cell, weight_lhqk in made.eager.items():
        names = made.genes_of(cell)
        own = [i for i, name in enumerate(names) if name in genes]
        for q in own:
            for k in own:
                for layer, head in np.ndindex(weight_lhqk.shape[:2]):
                    key = (made.cells[cell][group] if group else None, layer, head, names[q], names[k])
                    found[key].append(float(weight_lhqk[layer, head, q, k]))
    return found


@pytest.mark.parametrize("group", [None, "state"])
def test_the_table_of_pairs_is_brute_force_over_cells(made_v1: Made, group: str | None) -> None:
    genes = [GENES[4], GENES[0], GENES[17], GENES[2]]
    manifest = made_v1.run(f"pairs_{group}", genes=tuple(genes), label=group, top_k=3)
    assert manifest.genes == tuple(genes)
    assert manifest.labels == (("other", "sick", "well") if group else ())
    table, expected = Attention.open(str(made_v1.folder / f"pairs_{group}")).pairs(), summed(made_v1, set(genes), group)
    place = ["label", "layer", "head", "query", "key"]
    table["label"] = table["label"].astype(object).where(table["label"].notna(), None)
    found = {tuple(row[:5]): row[5:] for row in table[[*place, "cells", "sum", "mean", "max"]].itertuples(index=False)}
    assert set(found) == set(expected)
    for key, weights in expected.items():
        cells, total, mean, most = found[key]
        assert cells == len(weights)
        np.testing.assert_allclose([total, mean, most], [sum(weights), np.mean(weights), max(weights)], atol=1e-5)
    rows = weights_of(made_v1.folder / f"pairs_{group}")
    assert set(rows["query"]) | set(rows["key"]) <= set(genes)
    assert rows.groupby(["cell_id", "layer", "head"]).size().max() == 3
    assert manifest.counted["pairs"] == manifest.counted["pairs_summed"]


def test_the_table_of_heads_is_brute_force_over_cells(made_v2: Made) -> None:
    made_v2.run("heads", top_k=4)
    table = Attention.open(str(made_v2.folder / "heads")).heads()
    expected: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    for cell, weight_lhqk in made_v2.eager.items():
        gene = np.array([not name.startswith("<") for name in made_v2.genes_of(cell)])
        rank_bin = np.arange(gene.sum()) * RANK_BINS // gene.sum()
        for layer, head in np.ndindex(weight_lhqk.shape[:2]):
            weight_qk = weight_lhqk[layer, head].astype(np.float64)[gene]
            mass = [weight_qk[:, gene][:, rank_bin == b].sum(1).mean() for b in range(RANK_BINS)]
            kept = np.sort(weight_qk[:, gene].ravel())[::-1][:4].sum() / gene.sum()
            entropy = -(weight_qk * np.log(weight_qk)).sum(1).mean()
            own = weight_qk[:, gene].diagonal().mean()
            numbers = [entropy, np.log(len(gene)), own, weight_qk[:, ~gene].sum(1).mean(), kept]
            even = [(rank_bin == b).sum() / len(gene) for b in range(RANK_BINS)]
            expected[layer, head].append(np.array([*numbers, *mass, *even]))
    assert (table["cells"] == CELLS).all()
    names = ["entropy", "uniform_entropy", "self_weight", "special_weight", "kept_weight"]
    for row in table.to_dict("records"):
        found = [*(row[name] for name in names), *row["rank_mass"], *row["even_mass"]]
        np.testing.assert_allclose(found, np.mean(expected[row["layer"], row["head"]], axis=0), atol=2e-6)
        np.testing.assert_allclose(sum(row["rank_mass"]) + row["special_weight"], 1, atol=1e-6)


@pytest.mark.parametrize("lengths", [(7, 3, 1), (198, 128, 41, 12, 3)], ids=["shorter than the steps", "mixed"])
@pytest.mark.parametrize("special", [0, 2])
def test_even_weights_show_no_effect_of_rank(tmp_path: Path, lengths: tuple[int, ...], special: int) -> None:
    """The steps hold unequal numbers of genes; where special tokens take their share, genes still have theirs."""
    sums = HeadSums(Shape(2, 1, 1, 1, 1))
    for group, length in enumerate(lengths):
        gene_l = np.array([False] * (special // 2) + [True] * length + [False] * (special // 2))
        cell = CellAttention(Wanted(1, 1, 0, "cell"), gene_l, gene_l)
        cell.add(0, 0, torch.full((1, len(gene_l), len(gene_l)), 1 / len(gene_l)))
        sums.add_cell(group % 2, cell.measures(cell.kept()))
    write_heads(str(tmp_path), sums, Axes(("a", "b"), (0,), (0,), GENES[:1], GENES[:1]))
    table = pd.read_parquet(tmp_path / "heads.parquet")
    found_lb = times_even(table)
    assert found_lb is not None
    occupied_b = np.stack(table["even_mass"]).any(axis=0)
    np.testing.assert_allclose(found_lb[0, occupied_b], 1, rtol=1e-6)
    assert np.isnan(found_lb[0, ~occupied_b]).all()
    assert occupied_b.all() == (max(lengths) >= RANK_BINS)


def test_weights_by_rank_are_not_drawn_of_results_that_lack_their_even_share(tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "compatibility" / "v1" / "attention"
    said = draw_attention(str(old), str(tmp_path))
    assert any("weight by rank is not drawn, as an earlier version wrote" in line for line in said)
    assert (tmp_path / "attention_heads.png").exists()


def test_queries_alone_attend_to_all_genes_and_have_names(
    made_v1: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In rows and table, against eager attention; partners of one gene; names and least cells in the CSV."""
    names = tmp_path / "names.csv"
    names.write_text("ensembl_id,symbol\n" + "".join(f"{gene},S{i}\n" for i, gene in enumerate(GENES)))
    queries, common = [GENES[4], GENES[0]], {"queries": ("S4", "S0", "S29"), "gene_names": str(names)}
    unseen = GENES[29] not in {name for cell in made_v1.cells for name in made_v1.genes_of(cell)}
    manifest = made_v1.run("queries", label="state", top_k=3, special_tokens=True, **common)
    assert manifest.queries == (*queries, GENES[29])
    assert "--special-tokens: the vocabulary has neither" in caplog.text
    assert ("--queries: no cell has 1 of the 3 genes" in caplog.text) == unseen
    opened = Attention.open(str(made_v1.folder / "queries"))
    expected = {key: value for key, value in summed(made_v1, set(GENES), None).items() if key[3] in manifest.queries}
    pairs = opened.pairs().groupby(["layer", "head", "query", "key"])[["sum", "cells"]].sum()
    assert set(pairs.index) == {key[1:] for key in expected}
    assert [pairs.loc[key[1:], "cells"] for key in expected] == [len(value) for value in expected.values()]
    np.testing.assert_allclose(
        [pairs.loc[k[1:], "sum"] for k in expected], [sum(v) for v in expected.values()], atol=1e-5
    )
    rows = weights_of(made_v1.folder / "queries")
    assert set(rows["query"]) <= set(manifest.queries)
    first = rows.iloc[0]
    cell_lhqk, told = made_v1.eager[first["cell_id"]], made_v1.genes_of(first["cell_id"])
    own = cell_lhqk[first["layer"], first["head"]][[told.index(g) for g in manifest.queries if g in told]]
    assert first["weight"] == pytest.approx(own.max(), abs=1e-6)
    partners = opened.of_gene("S4", min_cells=2)
    means = {k: [np.mean(v) for key, v in expected.items() if key[3:] == (GENES[4], k)] for k in partners["gene"]}
    assert GENES[4] not in means
    np.testing.assert_allclose(partners["mean"], [np.mean(means[k]) for k in partners["gene"]], atol=1e-6)
    np.testing.assert_allclose(partners["top_mean"], [max(means[k]) for k in partners["gene"]], atol=1e-6)
    assert partners["mean"].is_monotonic_decreasing
    assert partners["cells"].min() >= 2
    assert partners["name"].tolist() == [f"S{GENES.index(gene)}" for gene in partners["gene"]]
    with pytest.raises(InputError, match="one query of the table of pairs must be called so; found none"):
        opened.of_gene("S7")
    said = draw_attention(opened.uri, str(tmp_path), str(names), 4)
    told_pairs = pd.read_csv(tmp_path / "attention_pairs.csv")
    assert told_pairs["cells"].min() >= 4
    assert set(told_pairs["query_name"]) <= {"S4", "S0", "S29"}
    assert any("pairs of two genes in fewer than 4 cells (--min-cells)" in line for line in said)
    said = draw_attention(opened.uri, str(tmp_path / "none"), None, CELLS + 1)
    assert any("none, as no pair is left" in line for line in said)
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["attention_heads.png"]


def test_without_a_list_the_most_frequent_genes_are_summed_and_the_others_counted(made_v1: Made) -> None:
    manifest = made_v1.run("frequent", most_genes=6, top_k=0)
    cells = defaultdict(int)
    for cell in made_v1.cells:
        for name in made_v1.genes_of(cell):
            cells[name] += 1
    wanted = sorted(cells, key=lambda name: (-cells[name], made_v1.vocabulary.genes[name]))[:6]
    assert set(manifest.genes) == set(wanted)
    assert manifest.genes_seen == len(cells)
    own = [[name in wanted for name in made_v1.genes_of(cell)] for cell in made_v1.cells]
    assert manifest.counted["pairs_summed"] == sum(sum(row) ** 2 for row in own)
    assert manifest.counted["pairs"] == sum(len(row) ** 2 for row in own)
    assert manifest.rows == 0


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_chosen_cells_layers_and_heads(made_v1: Made) -> None:
    made_v1.run("whole", top_k=4)
    manifest = made_v1.run("some", top_k=4, layers=("1",), heads=("1",), max_cells=5, donor="donor")
    assert (manifest.layers, manifest.heads) == ((1,), (1,))
    assert manifest.skipped == {"beyond --max-cells": CELLS - 5}
    found, every = weights_of(made_v1.folder / "some"), weights_of(made_v1.folder / "whole")
    assert found["cell_id"].nunique() == 5
    place = ["cell_id", "layer", "head", "query", "key"]
    both = found.merge(every, on=place)
    np.testing.assert_allclose(both["weight_x"], both["weight_y"], atol=1e-6)
    assert len(both) == len(found) == 5 * 4


def test_batches_and_parts_do_not_show(made_v2: Made) -> None:
    """Each cell alone, or all together in one part."""
    place = ["cell_id", "layer", "head", "query", "key"]
    tables, rows = [], []
    for name, options in (("alone", {"token_budget": 1}), ("together", {"token_budget": 999, "cells_per_part": 99})):
        made_v2.run(name, top_k=6, special_tokens=True, **options)
        tables.append(Attention.open(str(made_v2.folder / name)).pairs())
        rows.append(weights_of(made_v2.folder / name).set_index(place).sort_index())
    assert rows[0].index.equals(rows[1].index)
    np.testing.assert_allclose(rows[0]["weight"], rows[1]["weight"], rtol=0, atol=1e-6)
    assert tables[0].drop(columns=["sum", "mean", "max"]).equals(tables[1].drop(columns=["sum", "mean", "max"]))
    np.testing.assert_allclose(tables[0]["mean"], tables[1]["mean"], rtol=0, atol=1e-6)


def test_an_interrupted_run_goes_on_and_a_finished_one_is_left_alone(
    made_v1: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit whose sums are lost is done again; the bytes are those of an undisturbed run."""
    undisturbed = made_v1.run("undisturbed")
    removed = storage.remove_directory
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove_directory", lambda _: None)
        made_v1.run("disturbed")
    folder = made_v1.folder / "disturbed"
    for lost in (folder / "manifest.json", next((folder / "partial" / "heads" / "records").iterdir())):
        lost.unlink()
    lost_part = folder / undisturbed.parts[2].path
    lost_part.unlink()
    kept = (folder / undisturbed.parts[1].path).stat().st_mtime_ns
    made_v1.run("disturbed")
    assert storage.remove_directory is removed
    assert (folder / undisturbed.parts[1].path).stat().st_mtime_ns == kept
    assert files(folder) == files(made_v1.folder / "undisturbed")
    before = storage.stamp(str(folder / "manifest.json"))
    made_v1.run("disturbed")
    assert storage.stamp(str(folder / "manifest.json")) == before
    with pytest.raises(InputError, match="the output must be empty or hold this very result"):
        made_v1.run("disturbed", top_k=7)


def test_two_actors_write_what_one_process_writes(made_v1: Made, ray_session: None) -> None:
    made_v1.run("here", label="state")
    made_v1.run("actors", label="state", actors=2, cpus_per_actor=0.5)
    assert files(made_v1.folder / "actors") == files(made_v1.folder / "here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ("9",)}, "--layers: names some of 0 to 2, or all; found '9'"),
        ({"heads": ("-1",)}, r"--heads: names some of 0 to 1, or all; found '-1'"),
        ({"genes": ("ENSG99",)}, "every gene must be in the vocabulary; found 'ENSG99'"),
        ({"label": "sex"}, "--label must name an obs column"),
        ({"queries": ("ENSG99",)}, "--queries: every gene must be in the vocabulary; found 'ENSG99'"),
    ],
)
def test_bad_options_are_refused(made_v1: Made, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made_v1.run("refused", **options)
    assert not (made_v1.folder / "refused").exists()


def test_an_empty_list_of_genes_does_not_mean_all(made_v1: Made) -> None:
    for option in ("genes", "queries"):
        for nothing in ("", ("",)):
            with pytest.raises(ValueError, match="it names no gene; leave the option out for all genes"):
                made_v1.config("refused", **{option: nothing})


def test_the_error_of_a_large_table_names_the_option_it_comes_from() -> None:
    with pytest.raises(InputError, match=r"^--most-genes: the table of pairs may have"):
        attention_plan.check_size(Shape(1, 1, 1, 1 << 13, 1 << 13), "--most-genes")


def test_a_table_that_is_too_large_is_refused_before_anything_is_computed(
    made_v1: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_plan, "MOST_ENTRIES", 1000)
    with pytest.raises(InputError, match=r"the table of pairs may have 1,000 numbers .*5,400: 30 x 30 genes, 3 lay"):
        made_v1.run("large")
    assert not (made_v1.folder / "large").exists()


def test_the_job_says_what_was_left_out_and_draws(made_v2: Made, tmp_path: Path) -> None:
    config = made_v2.config("job", most_genes=10, label="state", max_cells=9, plots=str(tmp_path / "pictures"))
    said = main(config).splitlines()
    assert said[0].startswith("9 cells, layers 0 to 2, heads 0 to 1: ")
    assert said[1] == "left out: 9 cells beyond --max-cells"
    assert said[2].startswith("table of pairs: 10 genes found in most cells, of ")
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == [
        f"attention_{name}" for name in ("heads.png", "matrix.png", "pairs.csv", "pairs.png")
    ]
    for path in (path for path in pictures if path.suffix == ".png"):
        height, width, _ = mpl_image.imread(path).shape
        assert 300 < height < 4000
        assert 300 < width < 4000
    assert Corpus.open(config.corpus).manifest.digest == Attention.open(config.output).manifest.corpus_digest
