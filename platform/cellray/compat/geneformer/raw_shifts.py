"""Official files of raw shifts as a screen of ours: read without running anything they name.

Such a file is a dict of (perturbed tokens, affected token or `cell_emb`) to a list of numbers, one a cell, or of states
to such dicts. Which cell a number is of, and the gene's rank in it, the files do not tell: statistics that need these
cannot be had of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cellray import schema, storage
from cellray.compat.geneformer.dictionaries import File
from cellray.compat.geneformer.states import CellStates
from cellray.errors import InputError, listing
from cellray.infer.shift_tables import ShiftTable
from cellray.safe_pickle import load_nested_dict
from cellray.schema import PartRecord
from cellray.shift_schema import (
    AFFECTED,
    CELL_GENES,
    GENES,
    GROUP_MARK,
    INSERTED,
    PERTURBATION,
    RANK,
    SIMILARITY,
    ShiftManifest,
    States,
    effect_schema,
    shift_column,
    shift_schema,
)
from cellray.statistics.aggregates import CELL
from cellray.vocabulary import GeneVocabulary, read_official

_UNKNOWN = "unknown"
_FIX = "Screen the cells with InSilicoPerturber of this package."
Key = tuple[str, str]


def import_raw_shifts(files: Sequence[Path], folder: str, tokens: File, states: CellStates | None) -> ShiftTable:
    """Write official files of raw shifts as a screen.

    Parameters
    ----------
    files
        Of one screen.
    folder
        Where the screen goes.
    tokens
        The dictionary of their tokens.
    states
        Those of the shifts; None where similarities were measured.

    Raises
    ------
    InputError
        A file holds anything but plain values, other states, or tokens that are no genes.
    """
    if tokens is None:
        fix = "Name token_dictionary_file."
        raise InputError(str(files[0]), "raw shifts name genes by tokens, whose dictionary is needed", "none", fix)
    json = str(tokens).endswith(".json")
    vocabulary = GeneVocabulary.load(str(tokens)) if json else read_official(Path(tokens))
    gathered = _Gathered(vocabulary, () if states is None else states.names)
    for path in files:
        gathered.add(path, load_nested_dict(path))
    told = None if states is None else States(start=states.start, goal=states.goal, alternatives=states.alternatives)
    shifts = _write(folder, "shifts.parquet", gathered.shifts())
    effects = _write(folder, "effects.parquet", gathered.effects())
    vocabulary.save(storage.join(folder, schema.VOCABULARY))
    manifest = ShiftManifest(
        request=schema.request_digest(files=[storage.sha256_file(str(path)) for path in files]),
        parts=(shifts,),
        software={},
        kind="delete",
        corpus=folder,  # where the vocabulary lies
        corpus_digest=_UNKNOWN,
        model=_UNKNOWN,
        model_digest=_UNKNOWN,
        layer=0,
        pooling=_UNKNOWN,
        states=told,
        effect_parts=(effects,),
    )
    storage.write_bytes(storage.join(folder, schema.MANIFEST), manifest.to_json())
    return ShiftTable.open(folder)


@dataclass
class _Gathered:
    """Numbers of all files, by perturbation and what was affected, for each state ('' = a similarity)."""

    vocabulary: GeneVocabulary
    states: tuple[str, ...]
    values: dict[str, dict[Key, list[float]]] = field(default_factory=dict)

    def add(self, path: Path, content: Mapping[Any, Any]) -> None:
        """Add the numbers of a file."""
        by_state = all(isinstance(key, str) for key in content) and bool(content)
        if by_state != bool(self.states):
            found, fix = ("shifts by state", "Name") if by_state else ("similarities", "Leave out")
            rule = "shifts of states go with cell_states_to_model, similarities without"
            raise InputError(str(path), rule, found, f"{fix} cell_states_to_model.")
        lacking = set(self.states) - set(content) if by_state else set()
        if lacking:
            raise InputError(str(path), f"must hold {listing(self.states)}", f"{listing(content)}", "Name its states.")
        for state, table in content.items() if by_state else (("", content),):
            if state in self.states or not by_state:
                for key, numbers in self._read(path, table):
                    self.values.setdefault(state, {}).setdefault(key, []).extend(numbers)

    def _read(self, path: Path, table: Any) -> Iterator[tuple[Key, list[float]]]:  # noqa: ANN401
        """Yield perturbation and what it affected, by name, with its numbers."""
        pairs: Iterable[tuple[Any, Any]] = table.items() if isinstance(table, dict) else [(None, None)]
        for key, numbers in pairs:
            plain = isinstance(numbers, list) and all(isinstance(n, int | float) for n in numbers)
            if not (isinstance(key, tuple) and len(key) == 2 and plain):
                rule = "raw shifts are (perturbed, affected) to a list of numbers"
                raise InputError(str(path), rule, f"{key!r}: {str(numbers)[:60]}", _FIX)
            perturbed, affected = key
            name = CELL if affected == CELL else self._gene(path, affected)
            tokens = perturbed if isinstance(perturbed, tuple) else (perturbed,)
            yield (GROUP_MARK.join(self._gene(path, token) for token in tokens), name), numbers

    def _gene(self, path: Path, token: Any) -> str:  # noqa: ANN401
        if token not in self.vocabulary.gene_of_token:
            rule, fix = "every token must be a gene of the dictionary", "Name the dictionary of these tokens."
            raise InputError(str(path), rule, repr(token), fix)
        return self.vocabulary.gene_of_token[token]

    def shifts(self) -> pa.Table:
        """Return a row for each number of a cell; measures that were not taken are NaN."""
        first = self.values[self.states[0] if self.states else ""]
        keys = [key for key in first if key[1] == CELL]
        sizes = [len(first[key]) for key in keys]
        for state in self.states:
            if [len(self.values[state].get(key, [])) for key in keys] != sizes:
                raise InputError("raw shifts", "every state needs the same cells", f"others for {state!r}", _FIX)
        columns = {
            schema.CELL_ID: [f"{gene} {i}" for (gene, _), size in zip(keys, sizes, strict=True) for i in range(size)],
            PERTURBATION: np.repeat(np.arange(len(keys)), sizes),
            GENES: np.repeat(np.array([gene for gene, _ in keys], object), sizes),
            RANK: np.full(sum(sizes), INSERTED),
            CELL_GENES: np.zeros(sum(sizes), np.int32),
            SIMILARITY: np.full(sum(sizes), np.nan) if self.states else self._column("", keys),
            **{shift_column(state): self._column(state, keys) for state in self.states},
        }
        layout = shift_schema(self.states, [])
        return pa.table([pa.array(columns[f.name], f.type) for f in layout], schema=layout)

    def effects(self) -> pa.Table:
        """Return a row for each number of an affected gene."""
        layout, table = effect_schema(), self.values.get("", {})
        keys = [key for key in table if key[1] != CELL]
        numbers = {key: (i, table[key]) for i, key in enumerate(keys)}
        rows = [
            (f"{i} {n}", i, key[0], key[1], value) for key, (i, each) in numbers.items() for n, value in enumerate(each)
        ]
        names = (schema.CELL_ID, PERTURBATION, GENES, AFFECTED, SIMILARITY)
        columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
        return pa.table([pa.array(columns[f.name], f.type) for f in layout], schema=layout)

    def _column(self, state: str, keys: list[Key]) -> list[float]:
        return [number for key in keys for number in self.values[state][key]]


def _write(folder: str, name: str, table: pa.Table) -> PartRecord:
    with storage.atomic_file(storage.join(folder, name)) as path:
        pq.write_table(table, path)
        digest = storage.sha256_file(str(path))
    return PartRecord(path=name, rows=table.num_rows, sha256=digest, source=0, start=0, stop=table.num_rows)
