"""Tables about genes: the formats people have, what is kept, chains of replaced ids, what is refused."""

import gzip
import pickle
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from cellray.data.medians.gene_tables import GeneTables, read_gene_tables, read_retired_ids
from cellray.data.medians.sources import NO_ENSEMBL_ID, NO_NAME, NOT_LISTED, OTHER_TYPE, _genes
from cellray.errors import InputError
from tests.conftest import GENES

A, B, C, D = GENES[:4]
TABLE = pd.DataFrame(
    {
        "Gene stable ID": [A, B, C, D],
        "Gene type": ["protein_coding", "miRNA", "lncRNA", "protein_coding"],
        "Gene name": ["TP53", "MIR1", "XIST", "TP53"],
    }
)


def write(folder: Path, name: str, table: pd.DataFrame = TABLE) -> str:
    path = folder / name
    if name.endswith(".parquet"):
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="," if ".csv" in name else "\t", index=False)
    return str(path)


@pytest.mark.parametrize(
    "name", ["genes.csv", "genes.tsv", "genes.txt", "genes.tsv.gz", "genes.csv.gz", "genes.parquet"]
)
def test_biomart_exports_are_read_in_any_format(tmp_path: Path, name: str) -> None:
    tables = read_gene_tables(write(tmp_path, name), ("Protein_coding", "mirna"), None)
    assert tables.listed == {A, B, C, D}
    assert tables.wanted == {A, B, D}
    assert tables.symbols == {"MIR1": B}, "TP53 is two genes here: it is neither"


def test_without_types_the_whole_table_is_wanted(tmp_path: Path) -> None:
    plain = pd.DataFrame({"ensembl_id": [f"{A.lower()}.7", B, ""]})
    assert read_gene_tables(write(tmp_path, "g.csv", plain), (), None) == GeneTables(
        frozenset({A, B}), frozenset({A, B})
    )
    assert read_gene_tables(None, (), None) == GeneTables()


def test_columns_are_left_out_for_a_reason(tmp_path: Path) -> None:
    retired = tmp_path / "retired.csv"
    retired.write_text(f"old_id,new_id\n{GENES[9]},{A}\n")
    tables = read_gene_tables(write(tmp_path, "g.csv"), ("protein_coding", "miRNA"), str(retired))
    genes, kind, left_out, replaced = _genes([f"{A}.2", B, C, GENES[8], GENES[9], "MIR1", "spike-in", ""], tables)
    assert genes == [A, B, "", "", A, B, "", ""]
    assert kind == "ensembl"
    assert left_out == Counter({OTHER_TYPE: 1, NOT_LISTED: 1, NO_ENSEMBL_ID: 1, NO_NAME: 1})
    assert replaced == 1


def test_symbols_become_ids_where_the_table_has_them(tmp_path: Path) -> None:
    table = read_gene_tables(write(tmp_path, "g.csv", TABLE.iloc[:3]), (), None)
    genes, kind, left_out, _ = _genes(["TP53", "MIR1", "XIST", "NOPE"], table)
    assert (genes, kind, left_out) == ([A, B, C, ""], "ensembl", Counter({NO_ENSEMBL_ID: 1}))
    genes, kind, *_ = _genes(["TP53", "MIR1"], GeneTables())
    assert (genes, kind) == (["TP53", "MIR1"], "symbol")


@pytest.mark.parametrize(
    ("columns", "types", "message"),
    [
        ({"x": [A], "gene_type": ["miRNA"]}, (), "needs a column of gene ids.*columns 'gene_type', 'x'"),
        ({"gene_id": [A], "x": ["miRNA"]}, ("miRNA",), "needs a column of gene types.*columns 'gene_id', 'x'"),
        ({"gene_id": [A], "biotype": ["miRNA"]}, ("coding",), "none of 'coding'; its types: 'miRNA'"),
    ],
)
def test_tables_that_lack_something(
    tmp_path: Path, columns: dict[str, list[str]], types: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_gene_tables(write(tmp_path, "g.csv", pd.DataFrame(columns)), types, None)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the table must exist"):
        read_gene_tables(str(tmp_path / "none.csv"), (), None)
    for name in ("g.parquet", "g.tsv.gz", "g.csv"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00 no table")
        with pytest.raises(InputError, match="the file must be a table"):
            read_gene_tables(str(tmp_path / name), (), None)


def test_retired_ids_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(f'{{"{A.lower()}": "{B}.3", "{C}": "{C}"}}')
    (tmp_path / "plain.tsv").write_text(f"{A}\t{B}\n{C}\t{C}\n")
    (tmp_path / "two.csv").write_text(f"before,after\n{A},{B}\n")
    history = f"Old stable ID\tNew stable ID\tRelease\tMapping score\n{A}.1\t{B}.2\t99\t0.9\n{C}\t<retired>\t99\t0\n"
    (tmp_path / "history.tsv.gz").write_bytes(gzip.compress(history.encode()))
    (tmp_path / "r.pkl").write_bytes(pickle.dumps({A: B, C: C}))
    pd.DataFrame({"new_id": [B], "old_id": [A]}).to_parquet(tmp_path / "r.parquet")
    for path in tmp_path.iterdir():
        assert read_retired_ids(str(path)) == {A: B}, path.name


def test_chains_of_replacements_are_followed_and_circles_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"old,new\n{A},{B}\n{B},{C}\n{C},{D}\n")
    assert read_retired_ids(str(path)) == {A: D, B: D, C: D}
    path.write_text(f"old,new\n{D},{A}\n{A},{B}\n{B},{A}\n")
    with pytest.raises(InputError, match=f"circle.*{A} -> {B} -> {A}"):
        read_retired_ids(str(path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", f"old,new\n{A},{B}\n{A},{C}\n", f"one new id.*{A}: {B} and {C}"),
        ("r.csv", f"old,new\n{A},{A}\n", "must replace some id.*none in 1 rows"),
        ("r.csv", f"a,b,c\n{A},{B},{C}\n", "old and a new id.*columns 'a', 'b', 'c'"),
        ("r.json", "[1]", "object of old id: new id"),
        ("r.json", '{"a": 1}', "object of old id: new id"),
        ("r.pkl", "no pickle", "pickle"),
    ],
)
def test_tables_of_replacements_that_are_none(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_retired_ids(str(tmp_path / name))


def test_the_gene_table_may_name_retired_ids_itself(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(f"old,new\n{A},{GENES[20]}\n")
    tables = read_gene_tables(write(tmp_path, "g.csv"), ("miRNA", "protein_coding"), str(tmp_path / "r.csv"))
    assert tables.wanted == {GENES[20], B, D}
