"""Symbols that files of counts tell themselves: where they are looked for, how files are put together."""

from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pandas as pd
import pytest

from cellray import storage
from cellray.data.medians.build import MedianConfig, describe_origin
from cellray.data.medians.gene_tables import GeneTables
from cellray.data.medians.made_before import made_before, request_of
from cellray.data.medians.sources import ReadOptions, _describe, plan_sources
from cellray.data.medians.symbols import FileSymbols, MergedSymbols, file_symbols, merge_symbols
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES

A, B, C = GENES[:3]
INDEX, COLUMN, NAMES = "var index", "var column 'ensembl_id'", "var column 'Gene Symbol'"


@pytest.mark.parametrize(
    ("index", "columns", "ids_from", "wanted"),
    [
        (["CD74", "LYZ"], {"ensembl_id": [A, B]}, COLUMN, FileSymbols(("CD74", "LYZ"), INDEX)),
        (["0", "1"], {"ensembl_id": [A, B]}, COLUMN, FileSymbols()),
        ([A, B], {"ensembl_id": [A, B], "Gene Symbol": ["X", None]}, COLUMN, FileSymbols(("X", ""), NAMES)),
        ([A, B], {"Gene Symbol": pd.Categorical(["X", "Y "])}, INDEX, FileSymbols(("X", "Y"), NAMES)),
        ([A, B], {"n_cells": [3, 4]}, INDEX, FileSymbols()),
        (["0", "1"], {"symbol": [A, B]}, "var column 'symbol'", FileSymbols()),
    ],
)  # fmt: skip
def test_where_symbols_are_found(
    index: list[str], columns: dict[str, list[str]], ids_from: str, wanted: FileSymbols
) -> None:
    assert file_symbols(pd.DataFrame(columns, index=index), ids_from) == wanted


def test_files_are_put_together_in_any_order() -> None:
    """TWO is two genes: neither. A is CD74 in two files, OLD in one. An Ensembl ID and a number are no symbols."""
    files = [
        ((A, B, C, ""), FileSymbols(("CD74", "TWO", "TWO", "GONE"), INDEX)),
        ((A, B), FileSymbols(("CD74", B), INDEX)),
        ((A, GENES[3]), FileSymbols(("OLD", "7"), "var column 'symbol'")),
        ((A, B), FileSymbols()),
    ]
    wanted = MergedSymbols({"CD74": A}, 1, 1, ("var column 'symbol'", INDEX))
    assert [merge_symbols(order) for order in permutations(files)] == [wanted] * 24
    tie = merge_symbols([((A, A), FileSymbols(("Z", "B"), INDEX))])
    assert (tie.gene_of, tie.renamed) == ({"B": A}, 1), "of equals the first in the alphabet"


def test_real_cells_keep_their_symbols(shared: Path) -> None:
    """Index = symbols in one file, ids in the other; they name 13,000 genes alike."""
    options = ReadOptions("X", None, None)
    kang, facs = (
        _describe(str(shared / "data" / name), options, GeneTables()) for name in ("kang_ifnb.h5ad", "pbmc_facs.h5ad")
    )
    found = plan_sources([kang]).symbols()
    assert (found.found_in, found.gene_of["CD74"], found.gene_of["LYZ"]) == (
        *((INDEX,), "ENSG00000019582", "ENSG00000090382"),
    )
    assert len(found.gene_of) == 14053 - 2252
    both = plan_sources([kang, facs]).symbols()
    assert both.found_in == ("var column 'gene_symbol'", INDEX)
    assert both == plan_sources([facs, kang]).symbols()


def test_what_is_told_of_symbols(vocabulary: GeneVocabulary) -> None:
    measured = {
        **dict.fromkeys(("largest_error", "files", "cells", "values", "genes_of_few_cells", "columns_replaced"), 0),
        **{"genes_never_seen": 1345, "cells_left_out": Counter(), "columns_left_out": {"no name": 2252}},
    }
    here = {"symbols_from": [INDEX], "symbols_shared": 2, "symbols_renamed": 0}
    told = describe_origin(replace(vocabulary, symbols={"CD74": A}, origin={**measured, **here}))
    assert "2,252 no name; retired ids replaced: 0; genes of no cell, which get no token: 1,345" in told
    assert told.endswith("symbols: 1 genes, from var index; 2 symbols of several genes left out")
    assert "--gene-table gives them" in describe_origin(replace(vocabulary, symbols={}, origin={**measured, **here}))
    assert "make it anew" in describe_origin(replace(vocabulary, symbols={}, origin=measured))


def test_a_vocabulary_of_an_earlier_version_is_gone_on_with(
    shared: Path, vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    config = MedianConfig(source=(str(shared / "data" / "kang_ifnb.h5ad"),))
    output = storage.join(str(tmp_path), "v.json")
    replace(vocabulary, origin={"request": request_of(config, 1)}).save(output)
    assert request_of(config, 1) != request_of(config)
    assert made_before(output, config) is not None
