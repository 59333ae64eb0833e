"""Tables about genes that a user gives: which genes to keep, their symbols, ids that were replaced by others.

Reads CSV, TSV (either gzipped) and Parquet, as Ensembl's BioMart and most annotation pipelines write them. Knows
nothing of counts.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from cellray import storage
from cellray.data.gene_ids import is_ensembl, normalise_gene_id
from cellray.errors import InputError, listing
from cellray.safe_pickle import load_plain_dict

ID_COLUMNS = ("ensembl_id", "gene_id", "ensembl_gene_id", "gene_stable_id", "gene_stable_id_version", "gene")
"""Names of the column with gene ids; of these, blanks, underscores and case do not matter."""
TYPE_COLUMNS = ("gene_type", "gene_biotype", "biotype", "type")
SYMBOL_COLUMNS = ("gene_name", "symbol", "gene_symbol", "hgnc_symbol", "external_gene_name")
OLD_COLUMNS = ("old", "old_id", "old_stable_id", "retired", "retired_id", "previous_id")
NEW_COLUMNS = ("new", "new_id", "new_stable_id", "current", "current_id", "replaced_by")

_FIX = "Export the table as .csv, .tsv or .parquet."


@dataclass(frozen=True)
class GeneTables:
    """What the user's tables say.

    Attributes
    ----------
    listed
        Genes of the gene table; None where none was given.
    wanted
        Those of them to keep: all, or those of the wanted types.
    symbols
        Symbol to gene, of the wanted genes; a symbol of several genes is left out.
    retired_ids
        Earlier id to the current one, chains resolved.
    """

    listed: frozenset[str] | None = None
    wanted: frozenset[str] | None = None
    symbols: Mapping[str, str] = field(default_factory=dict)
    retired_ids: Mapping[str, str] = field(default_factory=dict)


def read_gene_tables(gene_table: str | None, gene_types: Sequence[str], retired_ids: str | None) -> GeneTables:
    """Read the tables of a request.

    Parameters
    ----------
    gene_table
        File with a column of gene ids and, perhaps, one of types (biotypes) and one of symbols.
    gene_types
        Types to keep, upper or lower case; none: every gene of the table.
    retired_ids
        File with old and new ids: see `read_retired_ids`.

    Raises
    ------
    InputError
        A file is missing or is no table, lacks a needed column, or no gene has a wanted type.
    """
    retired = read_retired_ids(retired_ids) if retired_ids else {}
    if gene_table is None:
        return GeneTables(retired_ids=retired)
    table = _read_table(gene_table)
    ids = _column(gene_table, table, ID_COLUMNS, "gene ids").map(normalise_gene_id)
    table = table.set_axis(pd.Index([retired.get(gene, gene) for gene in ids], dtype=object), axis=0)
    table = table[table.index != ""]
    kept = _of_types(gene_table, table, gene_types) if gene_types else table
    return GeneTables(frozenset(table.index), frozenset(kept.index), _symbols(kept), retired)


def _of_types(uri: str, table: pd.DataFrame, gene_types: Sequence[str]) -> pd.DataFrame:
    """Return the rows of the wanted types."""
    types = _column(uri, table, TYPE_COLUMNS, "gene types")
    there = {kind.lower() for kind in types}
    unknown = [kind for kind in gene_types if kind.lower() not in there]
    if unknown:
        raise InputError(
            uri,
            "the table must have genes of every type of --gene-types",
            f"none of {listing(unknown)}; its types: {listing(set(types) - {''}, limit=60)}",
            "Correct --gene-types.",
        )
    return table[types.str.lower().isin({kind.lower() for kind in gene_types})]


def _symbols(table: pd.DataFrame) -> dict[str, str]:
    """Return symbol to gene where the table has symbols; one that several genes bear means none of them."""
    name = find_column(table, SYMBOL_COLUMNS)
    if name is None:
        return {}
    pairs = pd.DataFrame({"symbol": table[name].str.strip(), "gene": table.index}).drop_duplicates()
    pairs = pairs[(pairs["symbol"] != "") & ~pairs["symbol"].isin(table.index)]  # an id is no symbol
    pairs = pairs.drop_duplicates("symbol", keep=False).sort_values("symbol")
    return dict(zip(pairs["symbol"], pairs["gene"], strict=True))


def read_gene_names(uri: str) -> dict[str, str]:
    """Read the symbols of genes: gene id to symbol, the first where a table gives several.

    Parameters
    ----------
    uri
        A table with a column of gene ids and one of symbols, or a `.json` object of one to the other.

    Raises
    ------
    InputError
        The file is missing or is no table, or lacks a column of gene ids or of symbols.
    """
    pairs = _name_pairs(uri).drop_duplicates("gene")
    return dict(zip(pairs["gene"], pairs["symbol"], strict=True))


def read_symbols(uri: str) -> dict[str, tuple[str, ...]]:
    """Read which genes bear a symbol: symbol to gene ids, sorted; see `read_gene_names`."""
    pairs = _name_pairs(uri)
    return {str(symbol): tuple(sorted(set(own))) for symbol, own in pairs.groupby("symbol")["gene"]}


def _name_pairs(uri: str) -> pd.DataFrame:
    """Return the columns `gene` and `symbol`, where there are both."""
    if uri.lower().endswith(".json"):
        pairs = pd.DataFrame(_json_pairs(uri, "gene id: symbol"), columns=["gene", "symbol"])
        if not pairs["gene"].map(is_ensembl).any():  # the official dictionary goes from symbols to ids
            pairs = pairs.set_axis(["symbol", "gene"], axis=1)
    else:
        table = _read_table(uri)
        ids, symbols = _column(uri, table, ID_COLUMNS, "gene ids"), _column(uri, table, SYMBOL_COLUMNS, "gene symbols")
        pairs = pd.DataFrame({"gene": ids, "symbol": symbols})
    pairs = pairs.assign(gene=pairs["gene"].map(normalise_gene_id), symbol=pairs["symbol"].str.strip())
    return pairs[(pairs["gene"] != "") & (pairs["symbol"] != "")]


def read_retired_ids(uri: str) -> dict[str, str]:
    """Read which ids were replaced by which: a table, a JSON object, or Geneformer's pickled mapping.

    A table has columns named as in `OLD_COLUMNS` and `NEW_COLUMNS`, or is just two columns, with or without a header.
    A replacement that was itself replaced is followed to the end; an id without a successor is left out.

    Raises
    ------
    InputError
        The file is missing or nothing of the kind, an old id has two new ones, or replacements go round in a circle.
    """
    lower = uri.lower()
    if lower.endswith((".pkl", ".pickle")):
        pairs = [(old, str(new)) for old, new in load_plain_dict(Path(uri)).items()]
    elif lower.endswith(".json"):
        pairs = _json_pairs(uri, "old id: new id")
    else:
        pairs = _table_pairs(uri)
    found: dict[str, str] = {}
    for old, new in ((normalise_gene_id(old), normalise_gene_id(new)) for old, new in pairs):
        if not old or new in {"", "<retired>", old}:  # Ensembl's ID history writes <retired> where nothing follows
            continue
        if found.setdefault(old, new) != new:
            raise InputError(uri, "an old id has one new id", f"{old}: {found[old]} and {new}", "Keep one of them.")
    if not found:
        raise InputError(uri, "the table must replace some id", f"none in {len(pairs):,} rows", "Check the file.")
    return {old: _last(uri, old, found) for old in sorted(found)}


def _last(uri: str, old: str, table: Mapping[str, str]) -> str:
    """Follow a chain of replacements to its end."""
    chain = [old]
    while (new := table.get(chain[-1])) is not None:
        if new in chain:
            found = " -> ".join([*chain[chain.index(new) :], new])
            raise InputError(uri, "replacements may not go round in a circle", found, "Remove one of them.")
        chain.append(new)
    return chain[-1]


def _json_pairs(uri: str, content: str) -> list[tuple[str, str]]:
    value = storage.read_json(uri)
    if not isinstance(value, dict) or not all(isinstance(new, str) for new in value.values()):
        raise InputError(uri, f"the JSON must be an object of {content}", type(value).__name__, "Check the file.")
    return list(value.items())


def _table_pairs(uri: str) -> list[tuple[str, str]]:
    """Return the two columns of a table of replacements."""
    table = _read_table(uri)
    old, new = find_column(table, OLD_COLUMNS), find_column(table, NEW_COLUMNS)
    if old is None or new is None:
        if table.shape[1] != 2:
            raise InputError(
                uri,
                f"the table needs an old and a new id (columns as {OLD_COLUMNS[1]} and {NEW_COLUMNS[1]}, or just two)",
                f"columns {listing(table.columns)}",
                "Rename the columns.",
            )
        old, new = (str(name) for name in table.columns)
        if is_ensembl(old):  # the first row was no header
            return [(old, new), *zip(table[old], table[new], strict=True)]
    return list(zip(table[old], table[new], strict=True))


def _column(uri: str, table: pd.DataFrame, names: Sequence[str], what: str) -> "pd.Series[str]":
    """Return a needed column."""
    name = find_column(table, names)
    if name is None:
        rule = f"the table needs a column of {what}, named as one of {listing(names)}"
        raise InputError(uri, rule, f"columns {listing(table.columns, limit=30)}", "Rename the column.")
    return table[name]


def find_column(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """Return the column that bears the first of some names, whatever its case, blanks and underscores."""
    there = {_plain(str(column)): str(column) for column in reversed(table.columns)}
    return next((there[_plain(name)] for name in names if _plain(name) in there), None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _read_table(uri: str) -> pd.DataFrame:
    """Read a table as text; missing values are empty."""
    try:
        data = storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(uri, "the table must exist", "no such file", "Check the path.") from None
    try:
        table = _parse(uri.lower(), data)
    except (ValueError, OSError, EOFError) as error:  # pyarrow's and pandas' errors are ValueErrors
        raise InputError(uri, "the file must be a table", str(error).split("\n", 1)[0], _FIX) from None
    return table.astype("string").fillna("").astype(object)


def _parse(name: str, data: bytes) -> pd.DataFrame:
    table: pd.DataFrame
    if name.endswith((".parquet", ".pq")):
        table = pd.read_parquet(io.BytesIO(data))
        return table
    separator = "," if name.removesuffix(".gz").endswith(".csv") else "\t"
    compression: Literal["gzip"] | None = "gzip" if name.endswith(".gz") else None
    return pd.read_csv(io.BytesIO(data), sep=separator, dtype=str, keep_default_na=False, compression=compression)
