"""Which cells, layers, heads and genes attention is told of, and whether the table of pairs fits into memory."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.collate import TokenRows
from cellray.data.corpora.codes import MISSING, read_codes
from cellray.data.corpora.corpus import Corpus
from cellray.data.parts import Unit
from cellray.errors import InputError
from cellray.infer.attention_sums import BYTES_PER_ENTRY, Shape
from cellray.model.pooling import is_gene_token
from cellray.vocabulary import GeneVocabulary

EVERY = "all"
MOST_ENTRIES = 1 << 25
"""Numbers of the table of pairs at most: 400 MB, once in the job and once in each replica, which hand over copies."""
_AT_ONCE = 8


@dataclass(frozen=True)
class Panel:
    """The genes of the table of pairs.

    Attributes
    ----------
    tokens
        Their token ids; after them those of special tokens, where these are told.
    genes_seen
        Genes that the chosen cells have.
    """

    tokens: tuple[int, ...]
    genes_seen: int


def chosen_numbers(option: str, asked: Sequence[str], there: int) -> tuple[int, ...]:
    """Return the numbers of layers or heads that an option names, ascending.

    Raises
    ------
    InputError
        One is no number, or the model has no such layer or head.
    """
    if tuple(asked) == (EVERY,):
        return tuple(range(there))
    wrong = [name for name in asked if not name.isdecimal() or int(name) >= there]
    if wrong or not asked:
        rule, fix = f"names some of 0 to {there - 1}, or {EVERY}", "0 is the lowest; correct the list."
        raise InputError(option, rule, ", ".join(map(repr, wrong)) or "none", fix)
    return tuple(sorted({int(name) for name in asked}))


def frequent_genes(corpus: Corpus, chosen_n: NDArray[np.bool_], most: int) -> Panel:
    """Return the genes that most of the chosen cells have; of equally frequent ones the lower token id."""
    cells_v = _cells_of_tokens(corpus, chosen_n)
    cells_v[~is_gene_token(corpus.vocabulary).numpy()] = 0
    order = np.argsort(-cells_v, kind="stable")[:most]
    return Panel(tuple(sorted(order[cells_v[order] > 0].tolist())), int((cells_v > 0).sum()))


def listed_genes(corpus: Corpus, chosen_n: NDArray[np.bool_], tokens: Sequence[int]) -> Panel:
    """Return listed genes, in the order of the list.

    Raises
    ------
    InputError
        No chosen cell has any of them.
    """
    cells_v = _cells_of_tokens(corpus, chosen_n)
    if not cells_v[list(tokens)].any():
        raise InputError("--genes", "some cell must have one of them", "no cell", "Choose other genes, or other cells.")
    return Panel(tuple(tokens), int((cells_v[is_gene_token(corpus.vocabulary).numpy()] > 0).sum()))


def _cells_of_tokens(corpus: Corpus, chosen_n: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each token id how many chosen cells have it; a token stands once in its cell."""
    size = len(corpus.vocabulary)

    def count(piece: tuple[str, NDArray[np.bool_]]) -> NDArray[np.int64]:
        uri, own = piece
        column = corpus.read(uri, 0, len(own), [schema.INPUT_IDS]).filter(own)[schema.INPUT_IDS]
        return np.bincount(TokenRows.from_arrow(column).input_ids, minlength=size)

    def pieces() -> Iterator[tuple[str, NDArray[np.bool_]]]:
        first = 0
        for part in corpus.manifest.parts:
            own = chosen_n[first : first + part.rows]
            first += part.rows
            if own.any():
                yield corpus.part_uri(part), own

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return sum(threads.map(count, pieces()), np.zeros(size, np.int64))


def token_names(vocabulary: GeneVocabulary) -> list[str]:
    """Return the gene id, or the name of the special token, of each token id."""
    names = dict(vocabulary.gene_of_token) | {token: name for name, token in vocabulary.special_tokens.items()}
    return [names[token] for token in range(len(vocabulary))]


@dataclass(frozen=True)
class Groups:
    """What the tables are parted by: the group of each cell, and the name of each group; None: cells without one."""

    code_n: NDArray[np.int32]
    names: tuple[str | None, ...]


def cell_groups(corpus: Corpus, label: str | None) -> Groups:
    """Return the groups of cells that an obs column names, or one group of all.

    Raises
    ------
    InputError
        The corpus lacks the column, or it holds fractions.
    """
    if label is None:
        return Groups(np.zeros(corpus.manifest.rows, np.int32), (None,))
    coded = read_codes(corpus, label, "--label")
    missing = coded.code_n == MISSING
    more = (None,) if missing.any() else ()
    return Groups(np.where(missing, len(coded.values), coded.code_n).astype(np.int32), (*coded.values, *more))


def check_size(shape: Shape) -> None:
    """Check that the table of pairs is small enough.

    Raises
    ------
    InputError
        It is not.
    """
    if shape.entries > MOST_ENTRIES:
        size = f"{MOST_ENTRIES:,} numbers ({MOST_ENTRIES * BYTES_PER_ENTRY / 1e6:,.0f} MB)"
        found = (
            f"{shape.entries:,}: {shape.genes:,} x {shape.genes:,} genes, {shape.layers} layers, {shape.heads} heads, "
            f"{shape.groups} labels"
        )
        fix = "List fewer --genes (or --most-genes), --layers or --heads, or a --label of fewer values."
        raise InputError("--genes", f"the table of pairs may have {size}", found, fix)


def chosen_units(
    corpus: Corpus, cells_per_part: int, chosen_n: NDArray[np.bool_], parameters: dict[str, object]
) -> tuple[list[Unit], dict[str, int]]:
    """Return the units that hold chosen cells and, by their keys, the number of each one's first cell."""
    units, first_of, first = [], {}, 0
    for unit in corpus.plan_units(cells_per_part, **parameters):
        own = chosen_n[first : first + unit.stop - unit.start]
        if own.any():
            packed = storage.sha256_bytes(np.packbits(own).tobytes())
            units.append(replace(unit, key=schema.request_digest(unit=unit.key, chosen=packed)))
            first_of[units[-1].key] = first
        first += len(own)
    return units, first_of
