"""Designs of perturbations: what each option and each file asks for, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cellray.data.medians.gene_tables import read_gene_names, read_symbols
from cellray.errors import InputError
from cellray.infer.design import WITH_ANCHOR, Design, make_design, read_design
from cellray.perturbation import EDITS, NO_TOKEN, make_edit, perturb_cell
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES

A, B, C = GENES[4], GENES[9], GENES[14]


def lists(design: Design, vocabulary: GeneVocabulary) -> list[str]:
    return [design.title(i, vocabulary) for i in range(len(design))]


def test_lists_groups_pairs_and_anchors(vocabulary: GeneVocabulary) -> None:
    assert lists(make_design(vocabulary, (A, B)), vocabulary) == [A, B]
    assert lists(make_design(vocabulary, (B, A), together=True), vocabulary) == [f"{B}|{A}"]
    assert lists(make_design(vocabulary, (A, B, C), pairs=True), vocabulary) == [
        *(A, B, C),
        *(f"{A}|{B}", f"{A}|{C}", f"{B}|{C}"),
    ]
    assert lists(make_design(vocabulary, (A, B, C), anchor=(B,)), vocabulary) == [B, A, C, f"{B}|{A}", f"{B}|{C}"]
    assert lists(make_design(vocabulary, (A, C), anchor=(B,), singles=False), vocabulary) == [f"{B}|{A}", f"{B}|{C}"]


def test_every_gene_of_a_cell_alone_or_with_an_anchor(vocabulary: GeneVocabulary) -> None:
    cell = np.array([9, 5, 7, 11], np.uint16)
    numbers, tokens = make_design(vocabulary, ("all",)).of_cell(cell, 1, 3)
    assert (numbers.tolist(), tokens.tolist()) == ([5, 7], [[5], [7]])
    anchor = vocabulary.gene_of_token[7]
    design = make_design(vocabulary, ("all",), anchor=(anchor,))
    numbers, tokens = design.of_cell(cell, 0, 100)
    assert numbers.tolist() == [7, 9, 5, 11, *(WITH_ANCHOR + token for token in (9, 5, 11))]
    assert tokens.tolist() == [[7, -1], [9, -1], [5, -1], [11, -1], [7, 9], [7, 5], [7, 11]]
    gene = vocabulary.gene_of_token
    titles = [design.title(int(number), vocabulary) for number in numbers[[0, 3, 6]]]
    assert titles == [anchor, gene[11], f"{anchor}|{gene[11]}"]
    assert design.of_cell(cell, 1, 3)[0].tolist() == [5, WITH_ANCHOR + 5]  # the anchor alone goes with rank 0
    assert design.copies(np.array([4])).tolist() == [9]
    assert design.copies(np.array([2]), 1).tolist() == [4]
    two = make_design(vocabulary, ("all",), anchor=(anchor, gene[3]))
    numbers, tokens = two.of_cell(cell, 0, 2)
    assert tokens.tolist() == [[7, 3, -1], [9, -1, -1], [5, -1, -1], [7, 3, 9], [7, 3, 5]]
    assert two.title(int(numbers[0]), vocabulary) == f"{anchor}|{gene[3]}"


def test_designs_in_files(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(f'one = ["{A}"]\ntwo = ["{C}", "{A}"]\n')
    design = read_design(vocabulary, str(tmp_path / "d.toml"))
    assert design.names == ("one", "two")
    assert (design.token_pk == NO_TOKEN).sum() == 1
    (tmp_path / "d.csv").write_text(f"name,genes\none,{A}\ntwo,{C} | {A}\n")
    assert read_design(vocabulary, str(tmp_path / "d.csv")).digest == design.digest
    assert make_design(vocabulary, (A,)).digest != design.digest


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "one = 3", "'one' is no list of genes"),
        ("a.toml", "one = [", "--perturbations names a table of genes"),
        ("a.csv", "gene\nx", "no columns 'name' and 'genes'; there are 'gene'"),
        ("a.csv", f"name,genes\none,{A}\none,{B}", "'one' stands there twice"),
        ("a.csv", "name,genes\none,ENSG1", "every gene must be in the vocabulary; found 'ENSG1'"),
        ("a.csv", f"name,genes\none,{A}|{A}", "a gene may be listed once only"),
        ("a.csv", "name,genes\none,", "there must be genes"),
        ("a.toml", "", "--perturbations names perturbations; found none"),
        ("a.csv", "name,genes\n", "--perturbations names perturbations; found none"),
        ("a.csv", "", "no columns 'name' and 'genes'"),
        ("a.csv", f"name,genes\none,{A}\ntwo", "line 3 lacks its genes"),
        ("a.csv", f"name,genes\n,{A}", "line 2 lacks its name"),
        ("a.csv", f"name,genes\none,{A},{B}", f"line 2 has more values than there are columns: '{B}'"),
        ("a.toml", f'one = ["{A}"]\ntwo = ["{A}"]', "'one' and 'two' list the same genes"),
    ],
)
def test_files_that_are_refused(vocabulary: GeneVocabulary, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_design(vocabulary, str(tmp_path / name))
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", EDITS)
def test_sets_in_another_order_are_refused_where_order_means_nothing(
    vocabulary: GeneVocabulary, tmp_path: Path, kind: str
) -> None:
    """Whether it does is asked of the edit itself: both orders, done to a cell."""
    file, ordered = tmp_path / "d.csv", make_edit(kind).ordered
    file.write_text(f"name,genes\none,{A}|{B}\nother,{C}\ntwo,{B}|{A}\n")
    tokens = [vocabulary.genes[A], vocabulary.genes[B]]
    cell = np.array([5, tokens[0], 7, 8, 9, 12, tokens[1], 14], np.uint16)
    one, two = (
        next(perturb_cell(cell, np.array([each], np.int32), make_edit(kind), 16, 60)).tokens_pm.tolist()
        for each in (tokens, tokens[::-1])
    )
    assert (one != two) == ordered
    if ordered:
        assert len(read_design(vocabulary, str(file), ordered=True)) == 3
    else:
        with pytest.raises(InputError, match="whatever the order of its genes; found 'one' and 'two' list the same"):
            read_design(vocabulary, str(file), ordered=False)


def test_a_panel_that_is_too_large(vocabulary: GeneVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellray.infer.design.MOST_LISTED", 40)
    with pytest.raises(InputError, match="at most 40 perturbations; found 45"):
        make_design(vocabulary, tuple(GENES[:10]), pairs=True)


def test_genes_by_symbol_version_and_retired_id(vocabulary: GeneVocabulary, tmp_path: Path) -> None:
    own = replace(vocabulary, symbols={"CD3E": A, "GATA4": B}, retired_ids={"ENSG00000000099": C})
    asked = ("CD3E", f"{B}.12", "ENSG00000000099")
    assert lists(make_design(own, asked, together=True), own) == [f"{A}|{B}|{C}"]
    assert lists(make_design(own, ("GATA4",), anchor=("CD3E",)), own) == [A, B, f"{A}|{B}"]
    (tmp_path / "d.csv").write_text("name,genes\nboth,CD3E|GATA4\n")
    assert lists(read_design(own, str(tmp_path / "d.csv")), own) == [f"{A}|{B}"]
    with pytest.raises(InputError, match=r"every gene must be in the vocabulary; found 'CD3E'.*--gene-names"):
        make_design(vocabulary, ("CD3E",))
    (tmp_path / "n.csv").write_text(f"gene_id,symbol\n{A},TBX5\n{B},TBX5\n{C}.3,CD3E\nENSG00000000777,CD3E\n")
    symbols = read_symbols(str(tmp_path / "n.csv"))
    assert lists(make_design(own, ("CD3E",), symbols=symbols), own) == [C]  # the table outweighs the vocabulary
    with pytest.raises(InputError) as caught:
        make_design(vocabulary, ("TBX5",), symbols=symbols)
    assert f"a symbol must mean one gene; found 'TBX5 ({A}, {B})'" in str(caught.value)
    with pytest.raises(InputError, match=f"a gene may be listed once only; found 'CD3E', '{A}'"):
        make_design(own, ("CD3E", B, A))


def test_symbols_from_json_either_way_round(tmp_path: Path) -> None:
    for name, value in (("a", {A: "X", B: "X", C: "Y"}), ("b", {"X": A, "Y": C, "Z": C})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    assert read_symbols(str(tmp_path / "a.json")) == {"X": (A, B), "Y": (C,)}
    assert read_symbols(str(tmp_path / "b.json")) == {"X": (A,), "Y": (C,), "Z": (C,)}
    assert read_gene_names(str(tmp_path / "b.json")) == {A: "X", C: "Y"}
    with pytest.raises(InputError, match="the file must exist"):
        read_symbols(str(tmp_path / "c.json"))
