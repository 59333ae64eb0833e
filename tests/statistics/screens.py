"""Small screens: rows in memory for the statistics, finished directories for the job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellray import storage
from cellray.schema import MANIFEST, PartRecord
from cellray.shift_schema import EFFECTS, ShiftManifest, States, effect_schema, shift_schema
from cellray.statistics.aggregates import EffectBatch
from cellray.statistics.naming import name_digests
from cellray.statistics.stream import ShiftBatch


@dataclass
class MemoryStream:
    """Rows of a table, cut where told: a `ShiftStream`."""

    frame: pd.DataFrame
    cuts: Sequence[int] = ()
    name: str = "screen"
    donor: str | None = None
    genes: list[str] = field(init=False)
    donors: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.genes = sorted(set(self.frame["genes"]))
        self.donors = [] if self.donor is None else sorted(set(self.frame[self.donor].dropna()))

    @property
    def rows(self) -> int:
        return len(self.frame)

    def batches(self, measures: Sequence[str]) -> Iterator[ShiftBatch]:
        for start, stop in zip([0, *self.cuts], [*self.cuts, len(self.frame)], strict=True):
            rows = self.frame.iloc[start:stop]
            rank = rows["rank"].to_numpy(float)
            donors = pd.Index(self.donors, dtype=object)
            donor = np.full(len(rows), -1) if self.donor is None else donors.get_indexer(rows[self.donor])
            yield ShiftBatch(
                pd.Index(self.genes).get_indexer(rows["genes"]).astype(np.int64),
                name_digests(list(rows["cell_id"])),
                donor.astype(np.int64),
                np.where(rank < 0, -1.0, rank / rows["cell_genes"].to_numpy(float)),
                {m: rows[m].to_numpy(np.float64) for m in measures},
            )


@dataclass
class MemoryEffects:
    """Gene effects of a table: an `EffectStream`."""

    frame: pd.DataFrame
    size: int = 7

    @property
    def genes(self) -> list[str]:
        return sorted(set(self.frame["genes"]))

    @property
    def affected(self) -> list[str]:
        return sorted(set(self.frame["affected"]))

    def batches(self) -> Iterator[EffectBatch]:
        for start in range(0, len(self.frame), self.size):
            rows = self.frame.iloc[start : start + self.size]
            gene = pd.Index(self.genes).get_indexer(rows["genes"]).astype(np.int64)
            affected = pd.Index(self.affected).get_indexer(rows["affected"]).astype(np.int64)
            yield EffectBatch(gene, affected, rows["similarity"].to_numpy(np.float64))


def gene(i: int) -> str:
    return f"ENSG{i:011d}"


def random_screen(
    genes: int = 12, cells: int = 40, donors: int = 5, seed: int = 0, states: Sequence[str] = ("A", "B", "C")
) -> pd.DataFrame:
    """Return deletions of genes at random ranks; cells lack some of the genes, and rounded shifts tie."""
    rng = np.random.default_rng(seed)
    cell, code = np.nonzero(rng.random((cells, genes)) < 0.7)
    rows = len(cell)
    frame = pd.DataFrame(
        {
            "cell_id": [f"cell{i}" for i in cell],
            "perturbation": code.astype(np.int32),
            "genes": [gene(i) for i in code],
            "rank": rng.integers(0, 100, rows).astype(np.int32),
            "cell_genes": np.full(rows, 100, np.int32),
            "similarity": np.round(1 - rng.gamma(1, 0.01, rows) * (1 + 4 * (code % 3 == 0)), 3).astype(np.float32),
        }
    )
    for state in states:
        frame[f"shift:{state}"] = np.round(rng.normal(code / genes / 25, 0.02, rows), 2).astype(np.float32)
    frame["donor"] = [f"d{i % donors}" for i in cell]
    return frame


STATES = States(start="A", goal="B", alternatives=("C",))


def write_screen(
    folder: Path,
    frame: pd.DataFrame,
    *,
    states: States | None = STATES,
    cuts: Sequence[int] = (),
    effects: pd.DataFrame | None = None,
    corpus: str = "/nowhere",
    corpus_digest: str = "none",
    **changes: object,
) -> str:
    """Publish a screen as the screen's job does; `changes` are fields of its manifest."""
    obs = [pa.field("donor", pa.string())] if "donor" in frame else []
    schema = shift_schema(states.names if states else (), obs)
    pieces = [
        frame.iloc[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(frame)], strict=True) if stop > start
    ]
    parts = tuple(_part(folder, f"shards/{i}.parquet", piece, schema) for i, piece in enumerate(pieces))
    effect_parts: tuple[PartRecord, ...] = ()
    if effects is not None:
        effect_parts = (_part(folder, f"{EFFECTS}/0.parquet", effects, effect_schema()),)
    manifest = ShiftManifest(
        request="test",
        parts=parts,
        software={},
        kind="delete",
        corpus=corpus,
        corpus_digest=corpus_digest,
        model="/nowhere",
        model_digest="none",
        layer=-1,
        pooling="cell",
        states=states,
        obs_kinds={"donor": "text"} if obs else {},
        effect_parts=effect_parts,
    ).model_copy(update=changes)
    storage.publish_once(str(folder / MANIFEST), manifest.to_json())
    return str(folder)


def _part(folder: Path, path: str, frame: pd.DataFrame, schema: pa.Schema) -> PartRecord:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = [pa.array(frame[f.name].to_numpy(), f.type, from_pandas=f.type == pa.string()) for f in schema]
    pq.write_table(pa.table(columns, schema=schema), file, row_group_size=100)  # NaN stay NaN
    digest = storage.sha256_file(str(file))
    return PartRecord(path=path, rows=len(frame), sha256=digest, source=0, start=0, stop=len(frame))
