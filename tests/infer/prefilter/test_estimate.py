"""Estimates of all genes of a cell against each perturbation done on its own, and each term against its definition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import BertModel

from cellray.infer.perturbed import Perturber
from cellray.infer.prefilter.estimate import Estimator, applicable
from cellray.infer.prefilter.readouts import Goal, Likeness, Readout
from cellray.model.encoder import CellEncoder
from cellray.model.gates import gated_layers, placed_embeddings
from cellray.model.presets import bert_config
from cellray.perturbation import make_edit, perturb_cell
from cellray.vocabulary import GeneVocabulary

GENES = 40


def vocabulary_of(version: str) -> GeneVocabulary:
    return GeneVocabulary.from_medians({f"ENSG{i:011d}": 1.0 for i in range(60)}, version, "ensembl", input_size=48)


def encoder_of(vocabulary: GeneVocabulary, *, moved: float = 1.0) -> CellEncoder:
    """Return a random model; `moved` scales how much a position says."""
    torch.manual_seed(0)
    bert = BertModel(bert_config("tiny", vocabulary, 48), add_pooling_layer=False).double().eval()
    bert.requires_grad_(requires_grad=False)
    for weight in bert.parameters():
        weight.mul_(2.0)  # large enough that tokens see one another
    bert.embeddings.position_embeddings.weight.mul_(moved)
    return CellEncoder(bert, 0)


def cell_of(vocabulary: GeneVocabulary, genes: int = GENES) -> np.ndarray:
    first = len(vocabulary.special_tokens)
    return (np.random.default_rng(3).permutation(60)[:genes] + first).astype(np.uint16)


def exact(encoder: CellEncoder, vocabulary: GeneVocabulary, cls: bool, kind: str, goal: np.ndarray) -> np.ndarray:
    """Return shift and similarity by rank, of copies that are computed one by one."""
    pooling, layout, genes_n = "cls" if cls else "cell", vocabulary.layout(48), cell_of(vocabulary)
    single = CellEncoder(encoder.bert, 0)
    perturber = Perturber(single, pooling, vocabulary, layout, {"goal": goal}, 512)
    copies = perturb_cell(
        genes_n, genes_n[:, None].astype(np.int32), make_edit(kind), layout.max_genes, len(vocabulary)
    )
    found = perturber.measure([(genes_n, list(copies))])
    value_n2 = np.tile([0.0, 1.0], (GENES, 1))
    value_n2[found.number_r] = np.stack([found.shift_rs[:, 0], found.similarity_r], axis=1)
    return value_n2


@pytest.mark.parametrize(
    ("version", "cls", "kind"), [("v1", False, "delete"), ("v2", True, "delete"), ("v1", False, "overexpress")]
)
def test_shifts_are_close_to_the_exact_ones(version: str, cls: bool, kind: str) -> None:
    vocabulary = vocabulary_of(version)
    moved = 0.5 if kind == "overexpress" else 1.0  # a move to the front is a large one
    encoder, goal = encoder_of(vocabulary, moved=moved), np.random.default_rng(0).normal(size=128).astype(np.float32)
    estimator = Estimator(encoder, vocabulary.layout(48), kind, Goal(torch.from_numpy(goal), cls=cls), 8, 512)
    estimate_n = estimator(cell_of(vocabulary))
    exact_n = exact(encoder, vocabulary, cls, kind, goal)[:, 0]
    assert spearmanr(estimate_n, exact_n).statistic > 0.9
    kept = applicable(kind, GENES)
    assert (np.delete(estimate_n, np.arange(GENES)[kept]) == 0).all()


@pytest.mark.parametrize(("version", "cls"), [("v1", False), ("v2", True)])
def test_similarities_are_close_to_the_exact_ones(version: str, cls: bool) -> None:
    vocabulary = vocabulary_of(version)
    encoder, goal = encoder_of(vocabulary), np.ones(128, np.float32)
    readout = Likeness(128, 128, 0, cls=cls)
    estimate_n = Estimator(encoder, vocabulary.layout(48), "delete", readout, 8, 512)(cell_of(vocabulary))
    exact_n = exact(encoder, vocabulary, cls, "delete", goal)[:, 1]
    assert spearmanr(estimate_n, exact_n).statistic > 0.8
    assert (estimate_n < 1).all()


def test_the_moved_ranks_on_every_rank_are_brute_force() -> None:
    vocabulary = vocabulary_of("v1")
    encoder, genes_n, goal_d = encoder_of(vocabulary), cell_of(vocabulary), torch.ones(128).double()
    goal_d[:64] = -1
    bert, readout = encoder.bert, Goal(goal_d, cls=False)
    # exact positions on all ranks: what is left is the pooling and the gate, which do not depend on the grid
    whole = Estimator(encoder, vocabulary.layout(48), "delete", readout, GENES, 512)
    still = replace(whole, encoder=encoder_of(vocabulary, moved=0.0))
    ids_1n = torch.from_numpy(genes_n.astype(np.int64))[None]
    everything = torch.ones(GENES, dtype=torch.bool)
    ranks_of_model = np.array(
        [
            float(
                readout(_hidden(bert, ids_1n, torch.arange(GENES) - (torch.arange(GENES) > rank).long()), everything)[
                    0, 0
                ]
            )
            for rank in range(GENES)
        ]
    ) - float(readout(_hidden(bert, ids_1n, torch.arange(GENES)), everything)[0, 0])
    own = _own_terms(whole, genes_n)
    assert np.abs(whole(genes_n) - (own + ranks_of_model)).max() < 1e-6
    coarse = replace(whole, grid=4)(genes_n) - own
    assert np.corrcoef(coarse, ranks_of_model)[0, 1] > 0.95
    assert still(genes_n) == pytest.approx(_own_terms(still, genes_n), abs=1e-6)  # no position says anything


def _hidden(bert: BertModel, ids_1n: torch.Tensor, position_n: torch.Tensor) -> torch.Tensor:
    return bert(input_ids=ids_1n, position_ids=position_n[None]).last_hidden_state


def _own_terms(estimator: Estimator, genes_n: np.ndarray) -> np.ndarray:
    """Return pooling and gate terms by plain loops: one gene left out of the mean; a difference of the gate."""
    bert, readout, count = estimator.encoder.bert, estimator.readout, len(genes_n)
    ids_1n, everything = torch.from_numpy(genes_n.astype(np.int64))[None], torch.ones(count, dtype=torch.bool)
    placed = placed_embeddings(bert, ids_1n, torch.arange(count)[None])
    hidden = gated_layers(bert, placed)
    now, step, own = float(readout(hidden, everything)[0, 0]), 1e-5, []
    for gene in range(count):
        others = everything.clone()
        others[gene] = False
        left = float(readout(hidden, others)[0, 0]) - now
        gates = torch.zeros(2, count, dtype=torch.float64)
        gates[0, gene], gates[1, gene] = -step, step
        ends = readout(gated_layers(bert, placed.expand(2, -1, -1), gates), everything)
        own.append(left + float(ends[0, 0] - ends[1, 0]) / (2 * step))
    return np.array(own)


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_before_the_first_layer_estimates_are_exact_for_the_pooling(kind: str) -> None:
    """The output of the embeddings: nothing attends to anything."""
    vocabulary, goal = vocabulary_of("v1"), np.random.default_rng(0).normal(size=128).astype(np.float32)
    encoder = encoder_of(vocabulary, moved=0.5)
    encoder.bert.encoder.layer = torch.nn.ModuleList()
    readout = Goal(torch.from_numpy(goal), cls=False)
    estimate_n = Estimator(encoder, vocabulary.layout(48), kind, readout, GENES, 512)(cell_of(vocabulary))
    exact_n = exact(encoder, vocabulary, False, kind, goal)[:, 0]
    assert np.corrcoef(estimate_n, exact_n)[0, 1] > 0.98


@pytest.mark.parametrize("readout", [Goal(torch.ones(128), cls=False), Likeness(3, 128, 0, cls=False)])
def test_cells_of_one_or_two_genes(readout: Readout) -> None:
    vocabulary = vocabulary_of("v1")
    estimator = Estimator(encoder_of(vocabulary), vocabulary.layout(48), "delete", readout, 8, 512)
    nothing = 0.0 if isinstance(readout, Goal) else 1.0
    assert estimator(np.array([7], np.uint16)).tolist() == [nothing]
    assert np.isfinite(estimator(np.array([7, 9], np.uint16))).all()
