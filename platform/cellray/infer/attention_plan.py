"""Which cells, layers, heads and genes attention is told of, and whether the table of pairs fits into memory."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cellray import schema, storage
from cellray.data.collate import TokenRows
from cellray.data.corpora.codes import MISSING, read_codes
from cellray.data.corpora.corpus import Corpus
from cellray.data.medians.gene_tables import read_gene_names
from cellray.data.parts import Unit
from cellray.errors import InputError, listing
from cellray.infer.attention_sums import BYTES_PER_ENTRY, Shape
from cellray.vocabulary import GeneVocabulary

logger = logging.getLogger(__name__)

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
    queries
        Token ids of the only queries; None: the same as `tokens`.
    """

    tokens: tuple[int, ...]
    genes_seen: int
    queries: tuple[int, ...] | None = None


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


def frequent_genes(cells_v: NDArray[np.int64], most: int | None) -> tuple[int, ...]:
    """Return the genes that most cells have, or all that any has; of equally frequent ones the lower token id.

    Parameters
    ----------
    cells_v
        Cells that have each gene; 0 for special tokens.
    most
        How many; None: all.
    """
    order = np.argsort(-cells_v, kind="stable")[:most]
    return tuple(sorted(order[cells_v[order] > 0].tolist()))


def require_seen(option: str, cells_v: NDArray[np.int64], tokens: Sequence[int], corpus: Corpus, cells: int) -> None:
    """Check that some chosen cell has a gene of a list, and tell which genes none has.

    Raises
    ------
    InputError
        No cell has any.
    """
    lacking = [token for token in tokens if not cells_v[token]]
    why = (
        "not counted in these cells, or below the cut: a row holds the highest "
        f"{corpus.manifest.encoding.input_size:,} genes of its cell at most, the model's input size"
    )
    if len(lacking) == len(tokens):
        fix = f"Choose other genes, or other cells; they were {why}."
        raise InputError(option, "some cell must have one of the genes", f"none in {cells:,} cells", fix)
    if lacking:
        names = listing((corpus.vocabulary.gene_of_token[token] for token in lacking), 20)
        logger.warning("%s: no cell has %d of the %d genes: %s (%s)", option, len(lacking), len(tokens), names, why)


def cells_of_tokens(corpus: Corpus, chosen_n: NDArray[np.bool_]) -> NDArray[np.int64]:
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


def symbols_of(vocabulary: GeneVocabulary, gene_names: str | None) -> dict[str, str]:
    """Return the symbols of genes: those of a user's table outweigh the vocabulary's.

    Raises
    ------
    InputError
        The table is missing, or is none of gene ids and symbols.
    """
    own = {gene: symbol for symbol, gene in vocabulary.symbols.items()}
    return own if gene_names is None else own | read_gene_names(gene_names)


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


def check_size(shape: Shape, option: str) -> None:
    """Check that the table of pairs is small enough.

    Parameters
    ----------
    shape
        Its size.
    option
        What its number of genes comes from.

    Raises
    ------
    InputError
        It is not.
    """
    if shape.entries > MOST_ENTRIES:
        size = f"{MOST_ENTRIES:,} numbers ({MOST_ENTRIES * BYTES_PER_ENTRY / 1e6:,.0f} MB)"
        found = (
            f"{shape.entries:,}: {shape.queries:,} x {shape.keys:,} genes, {shape.layers} layers, {shape.heads} heads, "
            f"{shape.groups} labels"
        )
        fix = f"Take fewer genes ({option}), --layers or --heads, or a --label of fewer values."
        raise InputError(option, f"the table of pairs may have {size}", found, fix)


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
