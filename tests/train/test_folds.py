"""Splits: every cell in one part, no group in two, the same by the same seed; what cannot be split is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cellray.data.corpora.codes import CodedColumn
from cellray.errors import InputError
from cellray.train.folds import (
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    InnerFolds,
    SplitConfig,
    cell_folds,
    gene_folds,
    split_cells,
)
from cellray.train.split_overview import overview
from cellray.train.tasks.gene_labels import GeneLabels
from cellray.train.tasks.labels import ClassLabels, LabelConfig, ValueLabels, read_labels
from cellray.vocabulary import GeneVocabulary
from tests.data.corpora import tokenized


@pytest.fixture
def rng() -> np.random.Generator:
    """Each test's own, so that its cells do not depend on the tests before it."""
    return np.random.default_rng(0)


def labels_of(codes: object, name: str = "kind") -> ClassLabels:
    code_n = np.array(codes, np.int32)
    classes = tuple("abcdefghij"[: code_n.max() + 1])
    return ClassLabels(name, code_n, classes, int((code_n < 0).sum()))


def column_of(codes: object, name: str = "donor") -> CodedColumn:
    code_n = np.array(codes, np.int32)
    return CodedColumn(name, code_n, tuple(f"d{i}" for i in range(code_n.max() + 1)))


def test_stratified_folds_keep_the_shares(rng: np.random.Generator) -> None:
    """100 cells of a, 50 of b, 10 without a label, in five folds: 20 + 10 in each test part, exactly."""
    codes = rng.permutation([0] * 100 + [1] * 50 + [-1] * 10)
    folds = split_cells(SplitConfig(folds=5), {"kind": labels_of(codes)})
    assert folds.part_kn.shape == (5, 160)
    assert folds.part_kn.dtype == np.int8
    for k in range(5):
        assert folds.counts(k, TEST, "kind").tolist() == [20, 10]
        assert folds.counts(k, VALIDATION, "kind").tolist() == [8, 4]
        assert folds.counts(k, TRAIN, "kind").tolist() == [72, 36]
    np.testing.assert_array_equal((folds.part_kn == TEST).sum(axis=0), codes >= 0)
    assert (folds.part_kn[:, codes < 0] == UNUSED).all()


@pytest.mark.parametrize("kind", ["random", "stratified", "grouped", "stratified_grouped"])
def test_inner_folds_cut_all_but_the_test_part(kind: str, rng: np.random.Generator) -> None:
    """The test part is that of one split; every other cell validates once; donors stay whole."""
    codes, donor = rng.integers(0, 3, 240), np.repeat(np.arange(24), 10)
    grouped = {"kind": kind, "group": "donor" if "grouped" in kind else None, "test_fraction": 0.25}
    groups = column_of(donor) if "grouped" in kind else None
    labels = {"kind": labels_of(codes)}
    once = split_cells(SplitConfig.model_validate(grouped), labels, groups)
    inner = split_cells(InnerFolds.model_validate({**grouped, "folds": 3}), labels, groups)
    assert len(inner) == 3
    for k in range(3):
        np.testing.assert_array_equal(inner.rows(k, TEST), once.rows(0, TEST))
        parts = [set(donor[inner.rows(k, part)]) for part in (TRAIN, VALIDATION, TEST)]
        assert groups is None or not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    validated = (inner.part_kn == VALIDATION).sum(axis=0)
    np.testing.assert_array_equal(validated, once.part_kn[0] != TEST)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["grouped", "stratified_grouped"]),
    folds=st.integers(1, 4),
    seed=st.integers(0, 99),
    donors=st.integers(5, 12),
    classes=st.integers(2, 4),
)
def test_no_group_is_ever_in_two_parts(kind: str, folds: int, seed: int, donors: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    cells = 240
    codes = rng.integers(0, classes, cells) * (rng.random(cells) < 0.9) - (rng.random(cells) < 0.1)
    donor_n = rng.choice(donors, cells, p=rng.dirichlet(np.full(donors, 2.0)))
    config = SplitConfig(kind=kind, group="donor", folds=folds, seed=seed, validation_fraction=0.2)
    try:
        result = split_cells(config, {"kind": labels_of(np.maximum(codes, -1))}, column_of(donor_n))
    except InputError as error:  # rare draws: too few donors with cells
        assert any(word in str(error) for word in ("groups", "empty", "classes"))  # noqa: PT017
        return
    for part_n in result.part_kn:
        for donor in range(donors):
            assert len(set(part_n[(donor_n == donor) & (part_n != UNUSED)])) <= 1
        assert set(part_n[codes >= 0]) == {TRAIN, VALIDATION, TEST}
    if folds > 1:
        np.testing.assert_array_equal((result.part_kn == TEST).sum(axis=0), codes >= 0)


@pytest.mark.parametrize("kind", ["random", "stratified", "grouped", "stratified_grouped"])
def test_a_seed_decides_everything(kind: str, rng: np.random.Generator) -> None:
    donors = column_of(rng.integers(0, 40, 200)) if "grouped" in kind else None
    labels = {"kind": labels_of(rng.integers(0, 3, 200))}
    group = "donor" if donors else None

    def parts(seed: int, folds: int) -> np.ndarray:
        return split_cells(SplitConfig(kind=kind, group=group, seed=seed, folds=folds), labels, donors).part_kn

    for folds in (1, 3):
        np.testing.assert_array_equal(parts(4, folds), parts(4, folds))
        assert (parts(4, folds) != parts(5, folds)).any()


def test_one_split_has_the_asked_sizes(rng: np.random.Generator) -> None:
    for kind in ("random", "stratified"):
        labels = {"kind": labels_of(rng.integers(0, 4, 1000))}
        folds = split_cells(SplitConfig(kind=kind, test_fraction=0.3, validation_fraction=0.2), labels)
        assert folds.describe()["cells"].tolist() == [560, 140, 300]
    folds = split_cells(SplitConfig(test_fraction=0, validation_fraction=0.25), labels)
    assert folds.describe()["cells"].tolist() == [750, 250, 0]


def test_several_heads_use_a_cell_with_any_label() -> None:
    first = labels_of([0, 1] * 40 + [-1] * 20)
    second = labels_of([-1] * 40 + [0, 1] * 20 + [0] * 10 + [-1] * 10, "other")
    folds = split_cells(SplitConfig(stratify_by="other"), {"kind": first, "other": second})
    assert (folds.part_kn[0] == UNUSED).tolist() == [False] * 90 + [True] * 10
    table = folds.describe()
    assert table[["other: a", "other: b"]].sum().tolist() == [30, 20]
    assert table.loc[2, ["other: a", "other: b"]].tolist() == [6, 4]
    with pytest.raises(InputError, match="stratify_by must name a head; found 'x'; heads: 'kind', 'other'"):
        split_cells(SplitConfig(stratify_by="x"), {"kind": first, "other": second})


def test_numbers_are_stratified_by_rank(rng: np.random.Generator) -> None:
    value_n = rng.lognormal(size=1000)
    folds = split_cells(SplitConfig(folds=4), {"age": ValueLabels("age", value_n, 0)})
    top = np.argsort(value_n)[-100:]
    assert [int((folds.part_kn[k, top] == TEST).sum()) for k in range(4)] == [25] * 4


def test_a_column_can_name_the_parts() -> None:
    labels = {"kind": labels_of([0, 1, 0, 1, 0, 1, 0, -1])}
    parts = CodedColumn("part", np.array([1, 1, 1, 2, 0, 0, -1, 1], np.int32), ("Test", "train", "val"))
    folds = split_cells(SplitConfig(column="part"), labels, parts=parts)
    assert folds.part_kn.tolist() == [[0, 0, 0, 1, 2, 2, -1, -1]]
    wrong = CodedColumn("part", np.zeros(8, np.int32), ("tset",))
    with pytest.raises(InputError, match="'part' must hold train, validation, test or nothing; found 'tset'"):
        split_cells(SplitConfig(column="part"), labels, parts=wrong)
    donors = column_of([0, 0, 0, 1, 0, 2, 2, 3])
    config = SplitConfig(column="part", kind="grouped", group="donor")
    with pytest.raises(InputError, match="one group must be in one part; found 1 groups"):
        split_cells(config, labels, donors, parts)


def test_validation_is_cut_where_a_column_names_none() -> None:
    parts = CodedColumn("part", np.array([0] * 40 + [1] * 60, np.int32), ("test", "train"))
    folds = split_cells(SplitConfig(column="part"), {"kind": labels_of([0, 1] * 50)}, parts=parts)
    assert folds.describe()[["cells", "kind: a"]].to_numpy().tolist() == [[54, 27], [6, 3], [40, 20]]


def test_classes_never_trained_on_are_reported_or_refused() -> None:
    """Class c lives in one donor only, so that some fold tests on it unseen."""
    codes = [0, 1] * 30 + [2] * 6
    donors = column_of(list(np.repeat([0, 1, 2], 20)) + [3] * 6)
    options = {"kind": "grouped", "group": "donor", "folds": 4, "validation_fraction": 0}
    folds = split_cells(SplitConfig.model_validate(options), {"kind": labels_of(codes)}, donors)
    unseen = folds.unseen()
    assert unseen[["head", "class", "cells"]].to_numpy().tolist() == [["kind", "c", 6]]
    assert folds.describe().groupby("part")["groups"].sum().to_dict() == {"train": 12, "validation": 0, "test": 4}
    with pytest.raises(InputError, match=r"tested on must be trained on; found 'kind: c \(fold \d, 6\)'"):
        split_cells(SplitConfig.model_validate(options | {"refuse_unseen": True}), {"kind": labels_of(codes)}, donors)


def test_cells_without_a_group_are_refused_or_counted() -> None:
    labels, donors = {"kind": labels_of([0, 1] * 20)}, column_of([0] * 10 + [1] * 10 + [2] * 10 + [-1] * 10)
    options = {"kind": "grouped", "group": "donor", "validation_fraction": 0}
    with pytest.raises(InputError, match="must have a group; found 10 of 40 labelled cells without 'donor'"):
        split_cells(SplitConfig.model_validate(options), labels, donors)
    folds = split_cells(SplitConfig.model_validate(options | {"drop_ungrouped": True}), labels, donors)
    assert folds.ungrouped == 10
    assert (folds.part_kn[0, 30:] == UNUSED).all()


@pytest.mark.parametrize(
    ("options", "codes", "donors", "message"),
    [
        ({"kind": "grouped", "group": "donor", "folds": 3}, [0, 1] * 20, [0, 1] * 20, "at least 3 groups; found 2"),
        ({"kind": "grouped", "group": "donor"}, [0, 1] * 20, [0] * 40, "at least 2 groups; found 1"),
        ({"kind": "grouped", "group": "donor"}, [0, 1] * 20, [0, 1] * 20, "to be cut for validation"),
        ({"folds": 5}, [0, 1] * 2, None, "n_splits=5"),
        ({"test_fraction": 0.05}, [0, 1, 2] * 5, None, "test_size = 1"),
        (
            {"kind": "grouped", "group": "donor", "folds": 2, "validation_fraction": 0},
            [0] * 10 + [1] * 10,
            [0] * 10 + [1] * 10,
            "at least two classes; found 1 of head 'kind'",
        ),
    ],
)
def test_refused_splits(options: dict[str, object], codes: list[int], donors: list[int] | None, message: str) -> None:
    groups = None if donors is None else column_of(donors)
    with pytest.raises(InputError, match=message):
        split_cells(SplitConfig.model_validate(options), {"kind": labels_of(codes)}, groups)


def test_empty_parts_are_refused() -> None:
    parts = CodedColumn("part", np.zeros(20, np.int32), ("train",))
    with pytest.raises(InputError, match="may be empty; found no cells for test in fold 0"):
        split_cells(SplitConfig(column="part"), {"kind": labels_of([0, 1] * 10)}, parts=parts)


def test_a_class_of_one_training_cell_stays_in_training() -> None:
    """Of two cells one is tested on; the other cannot be cut again."""
    codes = [0] * 60 + [1] * 60 + [2] * 2
    folds = split_cells(SplitConfig(folds=2), {"kind": labels_of(codes)})
    assert [folds.counts(k, TRAIN, "kind")[2] for k in range(2)] == [1, 1]
    assert [folds.counts(k, TEST, "kind")[2] for k in range(2)] == [1, 1]


def test_groups_and_parts_come_from_the_corpus(
    make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    """Two files of thirty cells, with the same five donors, in shards of seven."""
    obs = {
        "kind": ["a", "b"] * 15,
        "donor": [f"d{i // 6}" for i in range(30)],
        "part": ["train"] * 18 + ["validation"] * 6 + ["test"] * 6,
        "gaps": ["x", ""] * 15,
    }
    path = make_h5ad(cells=30, obs=obs)
    corpus = tokenized([path, path], vocabulary, tmp_path / "corpus", list(obs), cells_per_shard=7)
    labels = read_labels(corpus, [LabelConfig(name="kind")], folds=5)
    donor_n = np.array(obs["donor"] * 2)
    folds = cell_folds(SplitConfig(kind="grouped", group="donor", folds=5, validation_fraction=0.3), corpus, labels)
    tested = [set(donor_n[folds.rows(k, TEST)]) for k in range(5)]
    assert sorted(map(len, tested)) == [1] * 5
    assert set.union(*tested) == {"d0", "d1", "d2", "d3", "d4"}
    assert folds.describe()["cells"].tolist() == [24, 24, 12] * 5
    named = cell_folds(SplitConfig(column="part"), corpus, labels)
    assert named.part_kn.tolist() == [([0] * 18 + [1] * 6 + [2] * 6) * 2]
    with pytest.raises(InputError, match="group must name an obs column the corpus kept; found 'patient'; kept: kind"):
        cell_folds(SplitConfig(kind="grouped", group="patient"), corpus, labels)
    with pytest.raises(InputError, match="found 30 of 60 labelled cells without 'gaps'"):
        cell_folds(SplitConfig(kind="grouped", group="gaps"), corpus, labels)


def test_options_that_contradict_each_other() -> None:
    for options in ({"kind": "grouped"}, {"group": "donor"}, {"column": "part", "folds": 2}):
        with pytest.raises(ValidationError):
            SplitConfig.model_validate(options)


def test_genes_are_split_by_class() -> None:
    code_g = np.array([0, 1] * 30, np.int32)
    labels = GeneLabels(("x", "y"), np.arange(5, 65), code_g, tuple(f"g{i}" for i in range(60)), {}, {}, 0)
    folds = gene_folds(SplitConfig(folds=3, validation_fraction=0.25), labels)
    assert folds.describe()[["genes", "gene: x"]].to_numpy().tolist() == [[30, 15], [10, 5], [20, 10]] * 3
    assert ((folds.part_kn == TEST).sum(axis=0) == 1).all()
    with pytest.raises(InputError, match="genes have no groups"):
        gene_folds(SplitConfig(kind="grouped", group="donor"), labels)


def test_the_overview_tells_cells_by_class_and_part() -> None:
    """Eleven cells of a, ten of b; two folds, so that each test part has half of each."""
    folds = split_cells(SplitConfig(folds=2, validation_fraction=0.2), {"kind": labels_of([0] * 11 + [1] * 10 + [-1])})
    assert overview(folds) == [
        "2 folds, cells of each: train 8, validation 2-3, test 10-11",
        "kind train validation test",
        "   a     4        1-2  5-6",
        "   b     4          1    5",
    ]
    one = split_cells(SplitConfig(validation_fraction=0), {"kind": labels_of([0, 1] * 10)})
    assert overview(one)[0] == "cells: train 16, test 4"
