"""The tables of attention weights over all cells, written from sums, and finished results, opened for reading."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellray import storage
from cellray.attention_schema import (
    CELLS,
    HEAD_TABLE,
    KEY,
    KEY_NAME,
    MEAN,
    PAIR_TABLE,
    QUERY,
    QUERY_NAME,
    RANK_BINS,
    AttentionManifest,
    head_schema,
    pair_schema,
)
from cellray.data.corpora.corpus import read_rows
from cellray.errors import InputError
from cellray.infer.attention_pairs import over_groups, over_heads
from cellray.infer.attention_sums import MEASURES, HeadSums, PairSums
from cellray.schema import PartRecord


@dataclass(frozen=True)
class Axes:
    """What the axes of the sums are called: groups (None: cells without one), layers, heads, genes; their symbols."""

    groups: Sequence[str | None]
    layers: Sequence[int]
    heads: Sequence[int]
    queries: Sequence[str]
    keys: Sequence[str]
    symbols: Mapping[str, str] = field(default_factory=dict)

    def place(self, group: int, layer: int, head: int, rows: int) -> list[pa.Array]:
        """Return the columns that say where rows belong."""
        layers, heads = self.layers[layer], self.heads[head]
        return [
            pa.array([self.groups[group]] * rows, pa.string()),
            *(pa.array(np.full(rows, number, np.int16)) for number in (layers, heads)),
        ]


def write_pairs(output: str, sums: PairSums, axes: Axes) -> PartRecord:
    """Write the table of pairs: by group, layer, head, query and key, those that some cell has."""
    return _write(output, PAIR_TABLE, pair_schema(), _pair_tables(sums, axes))


def _pair_tables(sums: PairSums, axes: Axes) -> Iterator[pa.Table]:
    """Yield the pairs of one group and layer after the other."""
    sides = (axes.queries, axes.keys)
    ids = [pa.array(genes, pa.string()) for genes in sides]
    symbols = [pa.array([axes.symbols.get(gene) for gene in genes], pa.string()) for genes in sides]
    for group in range(len(axes.groups)):
        query, key = np.nonzero(sums.cells_sqk[group])
        cells, places = sums.cells_sqk[group, query, key], [pa.array(query), pa.array(key)]
        genes, names = ([own.take(place) for own, place in zip(x, places, strict=True)] for x in (ids, symbols))
        for layer in range(len(axes.layers)) if len(query) else ():
            tables = []
            for head in range(len(axes.heads)):
                total, most = (x[group, layer, head, query, key] for x in (sums.sum_slhqk, sums.max_slhqk))
                numbers = [pa.array(x) for x in (cells, total, total / cells, most)]
                place = axes.place(group, layer, head, len(query))
                tables.append(pa.table([*place, *genes, *numbers, *names], schema=pair_schema()))
            yield pa.concat_tables(tables)


def write_heads(output: str, sums: HeadSums, axes: Axes) -> PartRecord:
    """Write the table of heads: by group, layer and head."""
    whole = pa.concat_tables(_head_tables(sums, axes))
    return _write(output, HEAD_TABLE, head_schema(), iter([whole]))


def _head_tables(sums: HeadSums, axes: Axes) -> Iterator[pa.Table]:
    for group in np.flatnonzero(sums.cells_s).tolist():
        cells = int(sums.cells_s[group])
        for layer in range(len(axes.layers)):
            for head in range(len(axes.heads)):
                mean_m: NDArray[np.float64] = sums.sum_slhm[group, layer, head] / cells
                ranks = [
                    pa.FixedSizeListArray.from_arrays(pa.array(x), RANK_BINS) for x in np.split(mean_m[MEASURES:], 2)
                ]
                numbers = [pa.array([float(value)]) for value in mean_m[:MEASURES]]
                columns = [*axes.place(group, layer, head, 1), pa.array([cells]), *numbers, *ranks]
                yield pa.table(columns, schema=head_schema())


def _write(output: str, name: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> PartRecord:
    """Write a table piece by piece, whole or not at all."""
    rows = 0
    with storage.atomic_file(storage.join(output, name)) as path:
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))
                rows += table.num_rows
        digest = storage.sha256_file(str(path))
    return PartRecord(path=name, rows=rows, sha256=digest, source=0, start=0, stop=rows)


Role = Literal["query", "key"]
_SIDES: dict[Role, tuple[str, str, str]] = {"query": (QUERY, KEY, KEY_NAME), "key": (KEY, QUERY, QUERY_NAME)}
"""Columns of the gene that is asked for, of the others, and of their names."""


@dataclass(frozen=True)
class Attention:
    """Finished attention weights, opened for reading.

    Attributes
    ----------
    uri
        Their directory.
    manifest
        What they were made from.
    """

    uri: str
    manifest: AttentionManifest

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open the attention weights at a URI.

        Raises
        ------
        InputError
            There are no finished ones.
        """
        uri = storage.absolute(uri)
        return cls(uri, AttentionManifest.load(uri))

    def weights(self) -> Iterator[pa.Table]:
        """Yield the largest weights, part by part; see `cellray.attention_schema.weight_schema`."""
        for part in self.manifest.parts:
            if part.rows:
                yield read_rows(part.uri_in(self.uri), 0, part.rows)

    def pairs(self) -> pd.DataFrame:
        """Return the table of pairs; see `cellray.attention_schema.pair_schema`."""
        return self._table(PAIR_TABLE)

    def heads(self) -> pd.DataFrame:
        """Return the table of heads; see `cellray.attention_schema.head_schema`."""
        return self._table(HEAD_TABLE)

    def of_gene(self, gene: str, *, role: Role = "query", min_cells: int = 1) -> pd.DataFrame:
        """Return what a gene attends to, or what attends to it, of the table of pairs; the gene itself left out.

        Parameters
        ----------
        gene
            Ensembl ID, or the symbol that the table of pairs has.
        role
            `query`: what it attends to; `key`: what attends to it.
        min_cells
            Least cells that must have both genes.

        Returns
        -------
        A row for each other gene, the largest `mean` first: `gene`, `name` (symbol; None: not known), `cells` of all
        labels that have both, `mean` weight over layers and heads of the means over these cells, and the largest of
        these means: `top_mean`, in `top_layer` and `top_head`.

        Raises
        ------
        InputError
            The table has no such gene in this role, or the symbol means several.
        """
        table = self._rows(PAIR_TABLE)
        own, other, other_name = _SIDES[role]
        found = table.filter(pc.equal(table[own], gene))
        own_name = {QUERY: QUERY_NAME, KEY: KEY_NAME}[own]
        if not len(found) and own_name in table.column_names:
            found = table.filter(pc.equal(table[own_name], gene))
        ids = pc.unique(found[own]).to_pylist()
        if len(ids) != 1:
            rule, fix = (
                f"one {role} of the table of pairs must be called so",
                f"run jobs.attention with --queries {gene}",
            )
            raise InputError(gene, rule, ", ".join(ids) or "none", f"Name the Ensembl ID, or {fix}.")
        pairs = found.to_pandas()
        strength = over_heads(over_groups(pairs, [other]), [other])
        names = dict(zip(pairs[other], pairs[other_name], strict=True)) if other_name in pairs else {}
        strength.insert(1, "name", strength[other].map(names).astype(object))
        kept = strength[(strength[CELLS] >= min_cells) & (strength[other] != ids[0])]
        kept = kept.rename(columns={other: "gene"})
        ranked: pd.DataFrame = kept.sort_values(MEAN, ascending=False, ignore_index=True, kind="stable")
        return ranked

    def _table(self, name: str) -> pd.DataFrame:
        frame: pd.DataFrame = self._rows(name).to_pandas()
        return frame

    def _rows(self, name: str) -> pa.Table:
        (record,) = (table for table in self.manifest.tables if table.path == name)
        return read_rows(record.uri_in(self.uri), 0, record.rows)
