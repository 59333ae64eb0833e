"""Labels of cells and genes, against what was written into the files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellray.data.corpora.codes import CodedColumn, read_codes
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError
from cellray.train.tasks.gene_labels import gene_labels, read_gene_classes
from cellray.train.tasks.labels import LabelConfig, class_labels, known_labels, read_labels
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES
from tests.data.corpora import tokenized

KINDS = ["b", "a", "", "c", "b", "a"] * 5
AGES = [1.5, 2.5, np.nan, 4.0, 0.0, 1.0] * 5
CLUSTERS = [10.0, 2.0, np.nan, 2.0, 10.0, 2.0] * 5


@pytest.fixture
def corpus(make_h5ad: Callable[..., Path], vocabulary: GeneVocabulary, tmp_path: Path) -> Corpus:
    obs = {
        "kind": KINDS,
        "age": AGES,
        "cluster": CLUSTERS,
        "treated": [True, False] * 15,
        "same": ["x"] * 30,
        "none": pd.array([None] * 30, dtype="string"),
        "rare": ["r"] + ["p", "q"] * 14 + ["p"],
    }
    path = make_h5ad(cells=30, obs=obs)
    return tokenized([path, path], vocabulary, tmp_path / "corpus", list(obs), cells_per_shard=7)


def test_classes_stand_at_the_cells_numbers(corpus: Corpus) -> None:
    """Nine shards of two files: cells are numbered over all of them."""
    head = read_labels(corpus, [LabelConfig(name="kind")])["kind"]
    assert head.classes == ("a", "b", "c")
    assert [head.classes[c] if c >= 0 else "" for c in head.code_n] == KINDS * 2
    assert (head.missing, head.counts, head.dropped) == (10, {"a": 20, "b": 20, "c": 10}, {})


def test_only_the_named_columns_are_read(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never the tokens, and one column at a time."""
    read, asked = Corpus.read, []

    def watched(self: Corpus, uri: str, start: int, stop: int, columns: list[str]) -> object:
        asked.append(tuple(columns))
        return read(self, uri, start, stop, columns)

    monkeypatch.setattr(Corpus, "read", watched)
    read_labels(corpus, [LabelConfig(name="kind"), LabelConfig(name="age", kind="regression")])
    assert asked == [("kind",)] * len(corpus.shard_uris) + [("age",)] * len(corpus.shard_uris)


def test_numbers_and_flags_can_be_classes(corpus: Corpus) -> None:
    """Whole numbers sort by value: 2 before 10."""
    labels = read_labels(corpus, [LabelConfig(name="cluster"), LabelConfig(name="drug", column="treated")])
    assert labels["cluster"].classes == ("2", "10")
    assert labels["cluster"].counts == {"2": 30, "10": 20}
    assert labels["drug"].classes == ("false", "true")
    assert labels["drug"].code_n.tolist() == [1, 0] * 30


def test_values_and_their_scale(corpus: Corpus) -> None:
    head = read_labels(corpus, [LabelConfig(name="age", kind="regression")])["age"]
    np.testing.assert_array_equal(head.value_n, AGES * 2)
    assert head.missing == 10
    training = np.arange(60) < 3  # 1.5, 2.5 and a missing one
    assert head.scale(training) == (2.0, 0.5)
    with pytest.raises(InputError, match="different values; found 1 values, all the same"):
        head.scale(np.arange(60) < 1)


def test_classes_left_out_are_counted(corpus: Corpus) -> None:
    config = LabelConfig(name="kind", leave_out=("c",), classes=("b", "a"))
    head = read_labels(corpus, [config])["kind"]
    assert (head.classes, head.dropped, head.missing) == (("b", "a"), {"c": 10}, 10)
    assert head.code_n[:6].tolist() == [0, 1, -1, -1, 0, 1]
    rare = read_labels(corpus, [LabelConfig(name="kind", min_cells=11)])["kind"]
    assert (rare.classes, rare.dropped) == (("a", "b"), {"c": 10})


@pytest.mark.parametrize(
    ("config", "folds", "message"),
    [
        ({"name": "typo"}, 1, r"obs column the corpus kept; found 'typo'; kept: .*kind, age"),
        ({"name": "same"}, 1, "at least two classes .* found 1: 'x'"),
        ({"name": "none"}, 1, "there must be labelled cells; found none"),
        ({"name": "age"}, 1, 'must hold text, flags or whole numbers; found 1.5 in .*kind = "regression"'),
        ({"name": "rare"}, 3, r"at least 3 cells; found 'r \(2\)'. Leave them out with min_cells = 3"),
        ({"name": "kind", "kind": "regression"}, 1, "needs a numeric column; found text values"),
        ({"name": "none", "kind": "regression"}, 1, "needs a numeric column"),
        (
            {"name": "kind", "leave_out": ("z",)},
            1,
            "leave_out must name classes that are there; found 'z'; .* 'a', 'b'",
        ),
        ({"name": "kind", "classes": ("a", "b")}, 1, "must name every class that is not left out; found 'c'"),
        ({"name": "kind", "classes": ("a", "b", "c", "d")}, 1, "classes must name classes that are there; found 'd'"),
    ],
)
def test_refused_columns(corpus: Corpus, config: dict[str, object], folds: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(corpus, [LabelConfig.model_validate(config)], folds)


def test_heads_need_names_of_their_own(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="its own name"):
        read_labels(corpus, [LabelConfig(name="kind"), LabelConfig(name="kind", column="rare")])


def test_a_class_of_one_cell_is_refused_or_dropped() -> None:
    coded = CodedColumn("kind", np.array([0, 0, 1, 2, 2, -1], np.int32), ("a", "b", "c"))
    with pytest.raises(InputError, match=r"at least 2 cells; found 'b \(1\)'"):
        class_labels(coded, LabelConfig(name="kind"))
    assert class_labels(coded, LabelConfig(name="kind", min_cells=2)).dropped == {"b": 1}


def test_labels_in_terms_of_known_classes(corpus: Corpus) -> None:
    """A finished model meets cells of a class it does not know: they count, under their name."""
    head = known_labels(read_codes(corpus, "kind", "kind"), "kind", ("z", "b", "a"))
    assert head.code_n[:6].tolist() == [1, 2, -1, -1, 1, 2]
    assert (head.missing, head.dropped, head.counts) == (10, {"c": 10}, {"z": 0, "b": 20, "a": 20})


TABLE = {"up": [GENES[3], GENES[1] + ".7", "unheard", GENES[1]], "down": ["SYM5", GENES[6], " "]}


def test_gene_classes_in_tokens(vocabulary: GeneVocabulary) -> None:
    """Versions are stripped, symbols looked up; the small vocabulary gives gene i token i + 2."""
    known = GeneVocabulary(**{**vocabulary.__dict__, "symbols": {"SYM5": GENES[5]}})
    labels = gene_labels(TABLE, known)
    assert labels.token_g.tolist() == [3, 5, 7, 8]
    assert labels.code_g.tolist() == [0, 0, 1, 1]
    assert labels.genes == (GENES[1], GENES[3], GENES[5], GENES[6])
    assert labels.unknown == {"up": ("unheard",), "down": ()}
    assert (labels.repeated, labels.counts) == (1, {"up": 2, "down": 2})
    assert labels.by_token(labels.code_g, 10).tolist() == [-1, -1, -1, 0, -1, 0, -1, 1, 1, -1]


def test_genes_without_a_median_are_counted_apart(vocabulary: GeneVocabulary) -> None:
    medians = {gene: m for gene, m in vocabulary.medians.items() if gene != GENES[9]}
    fewer = GeneVocabulary(vocabulary.special_tokens, vocabulary.genes, medians, 16)
    labels = gene_labels({"x": [GENES[9], GENES[0], GENES[1]], "y": GENES[2:4]}, fewer)
    assert labels.without_median == {"x": (GENES[9],), "y": ()}
    assert labels.counts == {"x": 2, "y": 2}


def test_refused_gene_classes(vocabulary: GeneVocabulary) -> None:
    with pytest.raises(InputError, match=rf"one class only; found '{GENES[1]} \(x and y\)'"):
        gene_labels({"x": GENES[:3], "y": [GENES[1] + ".2", GENES[5]]}, vocabulary)
    with pytest.raises(InputError, match=r"at least 3 genes .* found 2 in 'y'; not in the vocabulary: 'FOO'"):
        gene_labels({"x": GENES[:3], "y": [GENES[5], GENES[6], "FOO"]}, vocabulary, folds=3)
    with pytest.raises(InputError, match="at least two classes; found 'x'"):
        gene_labels({"x": GENES[:3]}, vocabulary)


def test_tables_of_gene_classes_in_three_formats(tmp_path: Path) -> None:
    table = {"up": ["A", "B"], "down": ["C"]}
    (tmp_path / "t.json").write_text(json.dumps(table))
    (tmp_path / "t.toml").write_text('up = ["A", "B"]\ndown = ["C"]\n')
    (tmp_path / "t.csv").write_text("gene,class\nA,up\nB,up\nC,down\n")
    for ending in ("json", "toml", "csv"):
        assert read_gene_classes(str(tmp_path / f"t.{ending}")) == table


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "", "ends in '.csv', '.json', '.toml'; found ending '.txt'"),
        ("t.json", "{", "must be readable"),
        ("t.json", '{"a": "B"}', "a list of gene names; found 'a'"),
        ("t.json", "[1]", "a list of gene names; found 'the whole'"),
        ("t.csv", "a,b\n1,2\n", "no columns 'class' and 'gene'; there are 'a', 'b'"),
        (None, "", "no such file"),
    ],
)
def test_refused_tables(tmp_path: Path, name: str | None, text: str, message: str) -> None:
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_gene_classes(str(tmp_path / (name or "none.toml")))
