"""Edits of token rows against lists edited one by one, and rows a reader can check by eye."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.errors import InputError
from cellray.perturbation import EDITED, NO_TOKEN, QUARTILES, Edit, make_edit, perturb_cell

TOKENS = 60


def edited(genes: list[int], lists: list[list[int]], edit: Edit, capacity: int = 50) -> dict[int, list[int]]:
    """Return each perturbed row by the number of its perturbation, having checked what goes with it."""
    width = max(map(len, lists))
    token_pk = np.array([row + [NO_TOKEN] * (width - len(row)) for row in lists], np.int32)
    found: dict[int, list[int]] = {}
    for copies in perturb_cell(np.array(genes, np.uint16), token_pk, edit, capacity, TOKENS):
        for number, tokens, sources in zip(copies.numbers_p, copies.tokens_pm, copies.sources_pm, strict=True):
            found[int(number)] = tokens.tolist()
            for token, source in zip(tokens.tolist(), sources.tolist(), strict=True):
                assert genes[source] == token if source != EDITED else token in lists[number]
            missing = sum(token not in genes for token in lists[number])
            assert copies.reference == min(len(genes), capacity - missing)
    return found


def test_deletion_and_overexpression_by_eye() -> None:
    genes = [10, 11, 12, 13]
    assert edited(genes, [[10], [12], [99 - 60], [11, 13]], make_edit("delete")) == {
        0: [11, 12, 13],
        1: [10, 11, 13],
        3: [10, 12],
    }
    assert edited(genes, [[10], [12], [40], [13, 11], [40, 12]], make_edit("overexpress")) == {
        1: [12, 10, 11, 13],
        2: [40, 10, 11, 12, 13],
        3: [13, 11, 10, 12],
        4: [40, 12, 10, 11, 13],
    }


def test_an_insertion_pushes_the_last_genes_out() -> None:
    assert edited([10, 11, 12, 13], [[40], [40, 41], [12]], make_edit("overexpress"), capacity=4) == {
        0: [40, 10, 11, 12],
        1: [40, 41, 10, 11],
        2: [12, 10, 11, 13],
    }


def test_quartiles_by_eye() -> None:
    genes = list(range(10, 18))  # two genes a quartile; their middles are the ranks 1, 3, 5, 7
    assert edited(genes, [[14], [11], [17]], make_edit("activate")) == {
        0: [10, 11, 12, 14, 13, 15, 16, 17],
        1: [11, 10, 12, 13, 14, 15, 16, 17],
        2: [10, 11, 12, 13, 14, 17, 15, 16],
    }
    assert edited(genes, [[10], [16]], make_edit("inhibit", 2)) == {
        0: [11, 12, 13, 14, 15, 10, 16, 17],
        1: [10, 11, 12, 13, 14, 15, 17, 16],
    }
    assert edited(genes, [[14, 15]], make_edit("activate", 2)) == {0: [10, 14, 15, 11, 12, 13, 16, 17]}
    assert edited(genes, [[11, 10]], make_edit("activate", 3)) == {}  # both at the front, in their old order


def test_a_cell_of_nothing_but_the_deleted_gene_gives_no_copy() -> None:
    assert edited([10], [[10]], make_edit("delete")) == {}


def one_by_one(genes: list[int], listed: list[int], kind: str, steps: int, capacity: int) -> list[int] | None:
    """Edit a list."""
    absent = [token for token in listed if token not in genes]
    if absent and kind != "overexpress":
        return None
    rest = [token for token in genes if token not in listed]
    if kind == "delete":
        row = rest
    elif kind == "overexpress":
        row = listed + rest
    else:
        wanted = []
        for token in listed:
            place = genes.index(token)
            quartile = 1 + QUARTILES * place // len(genes) + (steps if kind == "inhibit" else -steps)
            middle = (2 * quartile - 1) * len(genes) // (2 * QUARTILES)
            wanted.append((0 if quartile < 1 else len(genes) - 1 if quartile > QUARTILES else middle, place, token))
        taken: dict[int, int] = {}
        for rank, _, token in sorted(wanted):
            free = rank
            while free in taken:
                free += 1
            taken[free] = token
        shift = max(0, *(rank - (len(genes) - len(taken) + i) for i, rank in enumerate(sorted(taken))))
        if shift:  # packed at the end
            ranks = sorted(taken)
            fitted = [min(rank, len(genes) - len(ranks) + i) for i, rank in enumerate(ranks)]
            taken = {new: taken[old] for new, old in zip(fitted, ranks, strict=True)}
        others = iter(rest)
        row = [taken[i] if i in taken else next(others) for i in range(len(genes))]
    row = row[:capacity]
    return None if not row or row == genes else row


@settings(max_examples=300)
@given(
    genes=st.lists(st.integers(2, TOKENS - 1), min_size=1, max_size=24, unique=True),
    lists=st.lists(st.lists(st.integers(2, TOKENS - 1), min_size=1, max_size=4, unique=True), min_size=1, max_size=8),
    kind=st.sampled_from(["delete", "overexpress", "activate", "inhibit"]),
    steps=st.integers(1, 3),
)
def test_edits_are_those_of_lists(genes: list[int], lists: list[list[int]], kind: str, steps: int) -> None:
    found = edited(genes, lists, make_edit(kind, steps), capacity=24)
    for number, listed in enumerate(lists):
        assert found.get(number) == one_by_one(genes, listed, kind, steps, 24), (number, listed)


@pytest.mark.parametrize(("kind", "steps", "rule"), [("remove", 1, "must be one of delete"), ("inhibit", 4, "1..3")])
def test_unknown_edits_are_refused(kind: str, steps: int, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        make_edit(kind, steps)
