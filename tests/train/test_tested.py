"""What was tested and what was not: rows of the test parts, genes that no cell holds, the step that was kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.train.evaluation import HeadResult, flat_metrics, gene_head_result, lines_on_genes
from cellray.train.folds import TEST, UNUSED, Folds
from cellray.train.kept import kept_line
from cellray.train.loop import LoopConfig, Progress
from cellray.train.metrics.genes import GeneSums, gene_metrics
from cellray.train.tasks.cells import CellTask, CellTaskConfig
from cellray.train.tasks.contract import Remarks
from cellray.train.tasks.gene_coverage import gene_remarks, genes_met
from cellray.train.tasks.gene_labels import GeneLabels
from cellray.train.tasks.labels import ClassLabels, ValueLabels
from cellray.train.tested import fold_table, support_counts
from cellray.train.tested_rows import gene_rows, write_test_predictions

CORPUS = Path(__file__).parents[1] / "compatibility" / "v1" / "corpus"
"""Six cells, cell0 .. cell5, whose tokens are 2 .. 13."""


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.open(str(CORPUS))


def multitask(kind: Sequence[int], age: Sequence[float]) -> CellTask:
    """Return a task of six cells in two folds: the first four cells are tested in the first, the last in the second."""
    labels: dict[str, ClassLabels | ValueLabels] = {
        "kind": ClassLabels("kind", np.array(kind, np.int32), ("a", "b"), 1),
        "age": ValueLabels("age", np.array(age), 1),
    }
    heads = [{"name": "kind"}, {"name": "age", "kind": "regression"}]
    config = CellTaskConfig.model_validate({"task": "multitask", "heads": heads})
    part_kn = np.array([[TEST] * 4 + [UNUSED] * 2, [UNUSED] * 5 + [TEST]], np.int8)
    return CellTask(config, labels, Folds(part_kn, {"kind": np.array(kind, np.int32)}, {"kind": ("a", "b")}))


def test_test_cells_stand_in_a_table(corpus: Corpus, tmp_path: Path) -> None:
    task = multitask([0, 1, -1, 1, 0, 0], [1.0, 2.0, 3.0, np.nan, 5.0, 6.0])
    p_nc = np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]], np.float32)
    first = {
        "cells": np.array([0, 1, 2, 3]),
        "head kind": p_nc,
        "head age": np.array([[1.5], [2], [3], [4]], np.float32),
    }
    second = {"cells": np.array([5]), "head kind": p_nc[3:], "head age": np.array([[7]], np.float32)}
    path = write_test_predictions(tmp_path / "told.parquet", task.test_rows(corpus, [first, second]))
    assert path is not None
    assert [list(row.values()) for row in pq.read_table(path).to_pylist()] == [
        ["cell0", 0, "a", "a", 0.75, 0.25, 1.0, 1.5],
        ["cell1", 0, "b", "a", 0.5, 0.5, 2.0, 2.0],
        ["cell2", 0, None, "b", 0.25, 0.75, 3.0, 3.0],
        ["cell3", 0, "b", "b", 0.0, 1.0, None, 4.0],
        ["cell5", 1, "a", "b", 0.0, 1.0, 6.0, 7.0],
    ]
    kind = ["kind.true", "kind.predicted", "kind.probability.a", "kind.probability.b"]
    assert pq.read_schema(path).names == ["cell_id", "fold", *kind, "age.true", "age.predicted"]
    nothing = {"cells": np.zeros(0, np.int64)}
    assert write_test_predictions(tmp_path / "none.parquet", task.test_rows(corpus, [nothing])) is None
    assert not (tmp_path / "none.parquet").exists()


def seven_genes() -> tuple[GeneLabels, Folds]:
    """Return genes of tokens 1 .. 7, of which token 1 is in no cell, in two folds."""
    code_g = np.array([0, 0, 0, 1, 1, 1, 1], np.int32)
    unknown = {"x": ("NOTAGENE1",), "y": ()}
    labels = GeneLabels(("x", "y"), np.arange(1, 8), code_g, tuple("ABCDEFG"), unknown, {"x": (), "y": ("MUTE",)}, 2)
    part_kn = np.array([[TEST, TEST, 0, TEST, TEST, 0, 0], [0, 0, TEST, 0, 0, TEST, TEST]], np.int8)
    return labels, Folds(part_kn, {"gene": code_g}, {"gene": labels.classes}, unit="genes")


def test_genes_that_no_cell_holds_are_told_before_a_training(corpus: Corpus) -> None:
    labels, folds = seven_genes()
    told = gene_remarks(corpus, labels, folds)
    assert told.lines == (
        "genes listed: 11, of which 7 are used; not in the vocabulary: 'NOTAGENE1'; without a median: 'MUTE'; "
        "named twice: 2",
        "1 of 7 genes stand in none of the 6 cells and are neither learnt from nor tested: 'A'",
    )
    assert told.warnings == (
        "fewer than 5 genes of a class are tested in 2 of 2 folds, 1 of 'x' in fold 0: a fold's figures say little, "
        "look at those of all folds together; a longer list, more cells or longer rows help, and fewer folds",
    )
    once = Folds(folds.part_kn[:1], folds.codes, folds.classes, unit="genes")
    assert (
        gene_remarks(corpus, labels, once).warnings[0].startswith("fewer than 5 genes of a class are tested, 1 of 'x'")
    )
    untested = Folds(np.zeros((1, 7), np.int8), folds.codes, folds.classes, unit="genes")
    assert gene_remarks(corpus, labels, untested).warnings == ()


def test_what_a_part_of_the_cells_shows_is_told_as_such(corpus: Corpus) -> None:
    told = gene_remarks(corpus, *seven_genes(), most_cells=0)
    assert told.lines[1].startswith(
        "7 of 7 genes stand in none of 0 of the 6 cells; if the others have none either, they are neither learnt from"
    )
    assert told.warnings[0].startswith("going by 0 of the 6 cells, fewer than 5 genes of a class are tested in 2 of 2")


def test_looking_for_genes_ends_when_all_are_met(corpus: Corpus) -> None:
    labels, _ = seven_genes()
    found = genes_met(corpus, labels, most_cells=0)
    assert (found.met_g.any(), found.cells, found.total) == (False, 0, 6)
    found = genes_met(corpus, labels)
    assert (found.met_g.tolist(), found.cells) == ([False] + [True] * 6, 6)


def many_genes_are_enough() -> tuple[GeneLabels, Folds]:
    code_g = np.array([0] * 5 + [1] * 5, np.int32)
    labels = GeneLabels(("x", "y"), np.arange(2, 12), code_g, tuple("ABCDEFGHIJ"), {}, {}, 0)
    return labels, Folds(np.full((1, 10), TEST, np.int8), {"gene": code_g}, {"gene": ("x", "y")}, unit="genes")


def test_nothing_is_warned_of_where_enough_genes_are_tested(corpus: Corpus) -> None:
    told = gene_remarks(corpus, *many_genes_are_enough())
    assert told == Remarks(("genes listed: 10, of which 10 are used", "all 10 genes stand in cells"))


def gene_result() -> tuple[GeneLabels, Folds, list[GeneSums], HeadResult]:
    """Return answers for the seven genes: B and D in the first fold, rightly; C, F and G in the second, F wrongly."""
    labels, folds = seven_genes()
    sums, figures = [], []
    for fold, answers in enumerate([{2: 0.75, 4: 0.25}, {3: 0.75, 6: 0.75, 7: 0.0}]):
        own = GeneSums.zero(14, 2)
        for token, p in answers.items():
            own.add(np.array([token, token]), np.array([[p, 1 - p]] * 2))
        rows = folds.rows(fold, TEST)
        names = [labels.genes[g] for g in rows]
        figures.append(gene_metrics(own, names, labels.token_g[rows], labels.code_g[rows], labels.classes))
        sums.append(own)
    return labels, folds, sums, gene_head_result("gene", figures)


def test_the_table_of_folds_tells_tested_genes_from_those_never_seen() -> None:
    _, folds, _, result = gene_result()
    table = fold_table(folds, {"gene": result.of_folds}).set_index(["fold", "part"])  # type: ignore[dict-item]
    assert list(table.columns) == ["genes", "tested", "never_seen", "gene: x", "gene: y"]
    assert table.loc[(0, "test")].tolist() == [4, 2, 2, 2, 2]
    assert table.loc[(1, "test")].tolist() == [3, 3, 0, 1, 2]
    assert table.drop("test", level="part")[["tested", "never_seen"]].isna().all(axis=None)
    (first, _) = result.of_folds
    counts = support_counts(folds, "gene", first)  # type: ignore[arg-type]
    assert {name: n.tolist() for name, n in counts.items()} == {
        "train": [1, 2],
        "tested": [1, 1],
        "not tested: in no cell": [1, 1],
    }
    assert lines_on_genes(folds, [result]) == [
        "gene: 5 of 7 genes were tested (2 to 3 a fold); 2 stand in none of the cells"
    ]


def test_all_folds_together_stand_beside_their_mean() -> None:
    """Two of two and two of three genes are right: 5/6 on average, 4/5 together."""
    flat = flat_metrics([gene_result()[3]])
    assert flat["gene/accuracy"] == pytest.approx(5 / 6)
    assert flat["gene/accuracy_pooled"] == pytest.approx(4 / 5)


def test_test_genes_stand_in_a_table() -> None:
    labels, folds, sums, _ = gene_result()
    table = gene_rows("gene", 0, labels, folds.part_kn[0] == TEST, sums[0])
    assert [list(row.values()) for row in table.to_pylist()] == [
        ["A", 1, 0, 0, "x", None, None, None],
        ["B", 2, 2, 0, "x", "x", 0.75, 0.25],
        ["D", 4, 2, 0, "y", "y", 0.25, 0.75],
        ["E", 5, 0, 0, "y", None, None, None],
    ]
    columns = ["gene", "token", "cells", "fold", "gene.true", "gene.predicted"]
    assert table.column_names == [*columns, "gene.probability.x", "gene.probability.y"]


LOOP = LoopConfig(200, "linear", 0, 1.0, 40, 5, 0)
REPORTS = [
    {"step": 5, "train_loss": 0.1},
    {"step": 40, "validation_loss": 1.9, "accuracy": 0.8, "macro_f1": 0.5, "token/accuracy": 0.9, "age/mae": 2.0},
    {"step": 80, "validation_loss": 1.8, "accuracy": 0.8, "macro_f1": 0.6, "token/accuracy": 0.1, "age/mae": 3.0},
    {"step": 120, "validation_loss": 1.744, "accuracy": 0.7, "macro_f1": 0.6, "ece": 0.1, "age/mae": 2.0},
]


def test_the_step_that_is_kept_is_named() -> None:
    done = Progress(120, 1.744, 120, 0)
    line = "kept: step 120 (validation_loss 1.744; accuracy was best at step 40: --monitor accuracy)"
    assert kept_line(done, REPORTS, LOOP) == line
    assert kept_line(done, REPORTS[-1:], LOOP) == "kept: step 120 (validation_loss 1.744)"
    assert kept_line(Progress(120), REPORTS[:1], LOOP) == "kept: step 120, the last one"
    by_accuracy = LoopConfig(200, "linear", 0, 1.0, 40, 5, 0, monitor="accuracy", higher_is_better=True)
    assert kept_line(Progress(120, 0.8, 40, 2), REPORTS, by_accuracy) == (
        "kept: step 40 (accuracy 0.8; validation_loss was best at step 120, macro_f1 was best at step 80: "
        "--monitor validation_loss)"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"min_cells": 5000},
            "found min_cells = 5,000, which leaves none; the largest: 'b' with 1,200 cells and 'c' with 2 cells. Lower",
        ),
        (
            {"min_cells": 3},
            "found min_cells = 3, which leaves 1; the largest: 'b' with 1,200 cells and 'c' with 2 cells.",
        ),
        ({"leave_out": ("a", "b", "c")}, "leave_out must leave at least two classes; found all 3 of the column in it."),
    ],
)
def test_options_that_leave_no_classes_are_named(config: dict[str, object], message: str) -> None:
    from cellray.data.corpora.codes import CodedColumn
    from cellray.train.tasks.labels import LabelConfig, class_labels

    coded = CodedColumn("kind", np.array([0] + [1] * 1200 + [2] * 2 + [-1], np.int32), ("a", "b", "c"))
    with pytest.raises(InputError) as caught:
        class_labels(coded, LabelConfig.model_validate({"name": "kind", **config}))
    assert message in str(caught.value)
