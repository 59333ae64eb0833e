"""How many of the cells or genes of a test part were tested: of genes, those that stand in no cell are not.

Is given a split and figures; knows nothing of models.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.train.folds import PARTS, TEST, Folds
from cellray.train.metrics.classification import ClassificationMetrics

GENES = "genes"


def fold_table(folds: Folds, of_folds: Mapping[str, Sequence[ClassificationMetrics]]) -> pd.DataFrame:
    """Return the table of a split; of genes with `tested` and `never_seen` in the rows of test parts.

    Parameters
    ----------
    folds
        The split.
    of_folds
        Figures of the test part of each fold, by head; a split of genes has one head.
    """
    table = folds.describe()
    if folds.unit != GENES:
        return table
    ((_, figures),) = of_folds.items()
    in_test = table["part"] == PARTS[TEST]
    tested = pd.Series([each.n for each in figures], index=table.index[in_test], dtype="Int64")
    table.insert(3, "tested", tested.reindex(table.index))
    table.insert(4, "never_seen", table[GENES] - table["tested"])
    return table


def support_counts(folds: Folds, head: str, first: ClassificationMetrics) -> dict[str, NDArray[np.int64]]:
    """Return the cells of each class in each part of the first fold that holds any, for a picture.

    Of genes the test part is in two: those that were tested, and those that are in no cell.
    """
    counts = {name: folds.counts(0, part, head) for part, name in enumerate(PARTS)}
    if folds.unit == GENES:
        test = counts.pop(PARTS[TEST])
        counts |= {"tested": first.support_c, "not tested: in no cell": test - first.support_c}
    return {name: n for name, n in counts.items() if n.any()}
