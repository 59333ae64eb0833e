"""A dataset with a column that says which cells are trained and which tested on, by the values of another column."""

import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cellray import schema, storage
from cellray.data.corpora.hf_layout import INFO, STATE, SavedDataset, info_json, state_json, with_features
from cellray.errors import InputError, listing

logger = logging.getLogger(__name__)

PART = "cellray_part"
"""Name of the column; `train`, `test` or nothing."""
_ROWS = 8192
_FILE = "data-00000-of-00001.arrow"
_PART_OF = {"train": "train", "eval": "test"}


def read_split(given: object) -> dict[str, Any]:
    """Check a `split_id_dict` of `validate`.

    Raises
    ------
    InputError
        It has other keys, or a value is in both parts.
    """
    fix = "Write {'attr_key': COLUMN, 'train': [values], 'eval': [values]}."
    if not isinstance(given, Mapping) or set(given) != {"attr_key", *_PART_OF}:
        found = listing(given) if isinstance(given, Mapping) else repr(given)
        raise InputError("split_id_dict", "has the keys attr_key, train and eval", found, fix)
    split = {"attr_key": str(given["attr_key"]), **{part: sorted(map(str, given[part])) for part in _PART_OF}}
    if both := set(split["train"]) & set(split["eval"]):
        raise InputError("split_id_dict", "a value is in one part", listing(both), fix)
    return split


def with_parts(dataset: str, place: str, split: Mapping[str, Any]) -> str:
    """Write the dataset with the column `PART` and return where: beginning with `place`, named by the split.

    Raises
    ------
    InputError
        The dataset lacks the column of the split, or a part would be empty.
    """
    saved = SavedDataset.open(dataset)
    if split["attr_key"] not in saved.columns.names:
        raise InputError(dataset, "split_id_dict names a column", split["attr_key"], "Correct attr_key.")
    target = f"{place}.{schema.request_digest(split=dict(split))[:8]}.dataset"
    if storage.exists(storage.join(target, STATE)):
        return target
    kinds = {name: kind for name in saved.columns.names if (kind := _plain(saved, name)) is not None}
    columns = with_features(pa.schema([*(pa.field(*item) for item in kinds.items()), pa.field(PART, pa.string())]))
    part_of = {value: ours for theirs, ours in _PART_OF.items() for value in split[theirs]}
    counts: dict[str | None, int] = dict.fromkeys([*_PART_OF.values(), None], 0)
    with storage.new_directory(target) as staged:
        with storage.atomic_file(storage.join(staged, _FILE)) as path, pa.ipc.new_stream(str(path), columns) as writer:
            for start in range(0, saved.rows, _ROWS):
                cells = saved.read(start, min(start + _ROWS, saved.rows), list(kinds))
                parts = [part_of.get(value) for value in cells[split["attr_key"]].cast(pa.string()).to_pylist()]
                for part in parts:
                    counts[part] += 1
                own = [cells[name].cast(kind) for name, kind in kinds.items()]
                writer.write_table(pa.table([*own, pa.array(parts, pa.string())], schema=columns))
        if empty := [name for name in _PART_OF.values() if not counts[name]]:
            raise InputError("split_id_dict", "every part needs cells", f"none in {listing(empty)}", "Correct it.")
        beside = storage.join(dataset, schema.VOCABULARY)
        if storage.exists(beside):
            storage.write_bytes(storage.join(staged, schema.VOCABULARY), storage.read_bytes(beside))
        storage.write_bytes(storage.join(staged, INFO), info_json(columns, f"{dataset} with parts"))
        storage.write_bytes(storage.join(staged, STATE), state_json([_FILE], target.rsplit(".", 2)[-2]))
    if counts[None]:
        logger.warning("%d of %d cells are in no part of split_id_dict and are left out", counts[None], saved.rows)
    return target


def _plain(saved: SavedDataset, name: str) -> pa.DataType | None:
    """Return the type that a column is written in; None for lists of other things, which training does not use."""
    kind = saved.columns.field(name).type
    if name == schema.INPUT_IDS:
        return pa.list_(pa.int64())
    if (
        name in saved.labels
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_dictionary(kind)
    ):
        return pa.string()
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_integer(kind):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(kind) else None
