"""Which cells of a corpus are perturbed: those of the start state, or a draw of them that is even over donors."""

import numpy as np
from numpy.typing import NDArray

from cellray.data.corpora.codes import MISSING, read_codes
from cellray.data.corpora.corpus import Corpus
from cellray.errors import InputError


def choose_cells(
    corpus: Corpus, column: str | None, state: str | None, donor: str | None, most: int | None, seed: int
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Choose cells.

    Parameters
    ----------
    column, state
        Obs column of the states, and the one whose cells are wanted; None: all cells.
    donor
        Obs column of the donors that a draw is even over; cells without one are drawn only where those with one do not
        suffice: tests over donors cannot use them.
    most
        How many cells are wanted; None: all.
    seed
        Of the draw.

    Returns
    -------
    tuple[NDArray[np.bool_], dict[str, int]]
        For each cell of the corpus whether it is chosen, and how many are not, by reason.

    Raises
    ------
    InputError
        A column is not there, or no cell is left.
    """
    wanted_n = np.ones(corpus.manifest.rows, bool)
    skipped: dict[str, int] = {}
    if column is not None and state is not None:
        coded = read_codes(corpus, column, "--state-column")
        code = coded.values.index(state) if state in coded.values else MISSING - 1
        wanted_n = coded.code_n == code
        skipped["not of the start state"] = int((~wanted_n).sum())
    if not wanted_n.any():
        raise InputError(corpus.uri, "there must be cells to perturb", f"none of {state!r}", "Choose another state.")
    if most is not None and wanted_n.sum() > most:
        donor_n = np.zeros(len(wanted_n), np.int32) if donor is None else read_codes(corpus, donor, "--donor").code_n
        drawn = draw_with_donors_first(np.flatnonzero(wanted_n), donor_n[wanted_n], most, seed)
        lost = int((donor_n[wanted_n] == MISSING).sum() - (donor_n[drawn] == MISSING).sum())
        skipped["beyond --max-cells"] = int(wanted_n.sum()) - most - lost
        if lost:
            skipped["without a donor, beyond --max-cells"] = lost
        wanted_n = np.zeros_like(wanted_n)
        wanted_n[drawn] = True
    return wanted_n, skipped


def draw_with_donors_first(
    cells: NDArray[np.int64], donor_n: NDArray[np.integer], most: int, seed: int
) -> NDArray[np.int64]:
    """Draw cells evenly over their donors; those without a donor (`MISSING`) fill up what is then left to draw.

    See `draw_evenly`, whose draw it is where every cell has a donor.
    """
    known = donor_n != MISSING
    if known.sum() >= most:
        return draw_evenly(cells[known], donor_n[known], most, seed)
    others = draw_evenly(cells[~known], donor_n[~known], most - int(known.sum()), seed)
    return np.sort(np.r_[cells[known], others])


def draw_evenly(cells: NDArray[np.int64], donor_n: NDArray[np.integer], most: int, seed: int) -> NDArray[np.int64]:
    """Draw cells, one of each donor in turn, until there are enough; donors with few cells give all of theirs.

    Parameters
    ----------
    cells, donor_n
        The cells to draw from, and the donor of each.
    most
        How many to draw.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(cells))
    shuffled = donor_n[order]
    by_donor = np.argsort(shuffled, kind="stable")
    first = np.r_[0, np.flatnonzero(np.diff(shuffled[by_donor])) + 1]
    turn = np.empty(len(cells), np.int64)
    turn[by_donor] = np.arange(len(cells)) - np.repeat(first, np.diff(np.r_[first, len(cells)]))
    return np.sort(cells[order[np.argsort(turn, kind="stable")[:most]]])
