"""Which cells of a classifier are trained and which tested on: by a share of each class, or by values of a column."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.compat.geneformer.labelled import Labelled, column_of, held_out
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError

logger = logging.getLogger(__name__)


def rows_of_parts(
    corpus: Corpus, cells: Labelled, split_id_dict: Mapping[str, Any] | None, share: float
) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each dataset that is written, by what its name ends in.

    Parameters
    ----------
    corpus, cells
        All cells, and those with a class.
    split_id_dict
        {"attr_key": COLUMN, "train": [values], "test": [values]}, or None: by `share`.
    share
        Of each class that is tested on; 0: no test.

    Raises
    ------
    InputError
        `split_id_dict` has other keys, or a part would be empty.
    """
    if split_id_dict is None:
        if share == 0:
            return {"": cells.rows}
        held_r = held_out(cells, share)
        return {"_train": cells.rows[~held_r], "_test": cells.rows[held_r]}
    if set(split_id_dict) != {"attr_key", "train", "test"}:
        fix = "Write {'attr_key': COLUMN, 'train': [values], 'test': [values]}."
        raise InputError("split_id_dict", "has the keys attr_key, train and test", f"{sorted(split_id_dict)}", fix)
    value_r = column_of(corpus, str(split_id_dict["attr_key"]), "split_id_dict")[cells.rows]
    found = {f"_{part}": cells.rows[np.isin(value_r, [*map(str, split_id_dict[part])])] for part in ("train", "test")}
    lost = len(cells.rows) - sum(map(len, found.values()))
    if lost:
        logger.warning("%d of %d cells are in no part of split_id_dict and are left out", lost, len(cells.rows))
    if empty := [part for part, rows in found.items() if not len(rows)]:
        rule, fix = "every part needs cells", "Correct its values."
        raise InputError("split_id_dict", rule, f"none in {', '.join(part.strip('_') for part in empty)}", fix)
    return found
