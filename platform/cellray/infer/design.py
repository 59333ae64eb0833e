"""Which genes are perturbed together: every gene of a cell, a list one by one or together, an anchor, pairs, a file.

A design gives, for a cell, the listed genes of its perturbations; which of them apply to the cell is decided by the
edit (`cellray.perturbation`). Knows vocabularies and no models.
"""

import csv
import io
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray import storage
from cellray.data.gene_ids import known_name
from cellray.errors import InputError, listing
from cellray.perturbation import NO_TOKEN
from cellray.schema import request_digest
from cellray.vocabulary import GeneVocabulary

ALL_GENES = "all"
Symbols = Mapping[str, Sequence[str]]
"""Ids of the genes that bear a symbol."""
WITH_ANCHOR = 1 << 16
"""Added to the number of a perturbation of every gene where an anchor is edited with it; token ids are smaller."""
MOST_LISTED = 1_000_000
"""Most perturbations of a listed design; a panel of 1,413 genes has as many pairs."""


@dataclass(frozen=True)
class Design:
    """The perturbations of a screen.

    Attributes
    ----------
    names
        Of listed perturbations; empty where every gene of a cell is perturbed.
    token_pk
        Token ids of each listed perturbation, `NO_TOKEN` at the end of shorter ones. int32.
    anchor
        Genes edited together with each gene of a cell; only where every gene is perturbed. The anchor and each other
        gene are then edited alone, too: what the statistics of pairs need.
    every_gene
        Whether every gene of a cell is perturbed on its own. A perturbation's number is then the gene's token id, or
        `WITH_ANCHOR` more where the anchor is edited together with it. An anchor of several genes alone has the number
        that its first gene would have with the anchor.
    named
        Whether the names are the user's; else they are the genes, joined.
    """

    names: tuple[str, ...]
    token_pk: NDArray[np.int32]
    anchor: tuple[int, ...] = ()
    every_gene: bool = False
    named: bool = False

    def __len__(self) -> int:
        """Return the number of listed perturbations."""
        return len(self.token_pk)

    @property
    def digest(self) -> str:
        """Digest of everything that decides the perturbations."""
        return request_digest(
            tokens=self.token_pk.tolist(),
            names=list(self.names),
            anchor=list(self.anchor),
            all=self.every_gene,
            **({"alone": True} if self.anchor else {}),  # told apart from a design that had no single genes
            **({"named": True} if self.named else {}),
        )

    @property
    def largest(self) -> int:
        """Genes that are edited together at most."""
        return len(self.anchor) + 1 if self.every_gene else self.token_pk.shape[1]

    def of_cell(
        self, genes_n: NDArray[np.uint16], first: int, stop: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return the numbers of a cell's perturbations and the genes each lists, from `first` to before `stop`.

        Where every gene is perturbed, these are the ranks from `first` on; the anchor alone goes with rank 0.
        """
        if not self.every_gene:
            return np.arange(first, min(stop, len(self))), self.token_pk[first:stop]
        own = genes_n[first:stop].astype(np.int64)
        if not self.anchor:
            return own, own.astype(np.int32)[:, None]
        others = own[~np.isin(own, self.anchor)]
        anchor_alone = [] if first else [self.anchor[0] + WITH_ANCHOR * (len(self.anchor) > 1)]
        number_p = np.concatenate([np.array(anchor_alone, np.int64), others, WITH_ANCHOR + others])
        return number_p, _padded([self._tokens(number) for number in number_p.tolist()], self.largest)

    def _tokens(self, number: int) -> tuple[int, ...]:
        """Return the genes of a perturbation where every gene is perturbed."""
        anchored, token = divmod(number, WITH_ANCHOR)
        others = () if token in self.anchor and anchored else (token,)
        return (*self.anchor, *others) if anchored else others

    def copies(self, count_n: NDArray[np.int64], first: int = 0) -> NDArray[np.int64]:
        """Return how many perturbations `of_cell` gives at most for so many ranks, or listed ones, from `first` on."""
        return 2 * count_n + (first == 0) if self.anchor else count_n

    def title(self, number: int, vocabulary: GeneVocabulary) -> str:
        """Return the genes of a perturbation, joined by `|`."""
        listed = () if self.every_gene else self.token_pk[number][self.token_pk[number] != NO_TOKEN]
        tokens = self._tokens(number) if self.every_gene else listed
        return "|".join(vocabulary.gene_of_token[int(token)] for token in tokens)


def make_design(
    vocabulary: GeneVocabulary,
    genes: Sequence[str],
    *,
    together: bool = False,
    pairs: bool = False,
    anchor: Sequence[str] = (),
    singles: bool = True,
    symbols: Symbols | None = None,
) -> Design:
    """Return the design that a job's options name.

    Parameters
    ----------
    genes
        Ensembl IDs or symbols (see `tokens_of`), or `all`.
    together
        Edit the listed genes together.
    pairs
        Edit all pairs of the listed genes.
    anchor
        Genes that are edited together with each listed gene, or with each gene of a cell.
    singles
        Let pairs be preceded by each of their genes on its own: what their statistics need.
    symbols
        More names than the vocabulary has.

    Raises
    ------
    InputError
        A gene is unknown, ambiguous or listed twice, or there are too many perturbations.
    """
    fixed = tokens_of(vocabulary, anchor, "--anchor", symbols) if anchor else []
    if list(genes) == [ALL_GENES]:
        if together or pairs:
            raise InputError("--genes all", "is not for --together and --pairs", "both", "List the genes.")
        return Design((), np.empty((0, 1), np.int32), tuple(fixed), every_gene=True)
    listed = tokens_of(vocabulary, genes, "--genes", symbols)
    if together:
        return _listed(vocabulary, [listed])
    if pairs:
        _check_number(len(listed) * (len(listed) - 1) // 2)
        return _listed(vocabulary, [*([t] for t in listed if singles), *map(list, combinations(listed, 2))])
    if fixed:
        others = [token for token in listed if token not in fixed]
        if not others:
            rule, fix = "there must be genes beside those of --anchor", "List others, or leave out --anchor."
            raise InputError("--genes", rule, listing(genes), fix)
        alone = [fixed, *([token] for token in others)] if singles else []
        return _listed(vocabulary, [*alone, *([*fixed, token] for token in others)])
    return _listed(vocabulary, [[token] for token in listed])


def read_design(
    vocabulary: GeneVocabulary, uri: str, symbols: Symbols | None = None, *, ordered: bool = True
) -> Design:
    """Return the design of a file.

    Parameters
    ----------
    uri
        `.toml`: name = [genes]; `.csv`: columns `name` and `genes`, the latter joined by `|`.
    symbols
        More names than the vocabulary has.
    ordered
        Whether the order of a set's genes matters to the edit; see `cellray.perturbation.Edit`.

    Raises
    ------
    InputError
        The file is not of this kind or names nothing, a gene is unknown, ambiguous or listed twice, or two names mean
        the same edit: its cells would count twice in the statistics.
    """
    fix = "Write a TOML of name = [genes], or a CSV with the columns name and genes (joined by |)."
    try:
        text = storage.read_bytes(storage.absolute(uri)).decode()
        table = _read_csv(text) if uri.endswith(".csv") else _checked(tomllib.loads(text))
    except FileNotFoundError:
        raise InputError(uri, "--perturbations names a file", "no such file", "Check the path.") from None
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise InputError(uri, "--perturbations names a table of genes", str(error), fix) from None
    if not table:
        raise InputError(uri, "--perturbations names perturbations", "none", fix)
    lists = {name: tokens_of(vocabulary, genes, f"{uri}, {name}", symbols) for name, genes in table.items()}
    _refuse_equal(uri, lists, ordered=ordered)
    return _listed(vocabulary, list(lists.values()), tuple(lists))


def _refuse_equal(uri: str, lists: Mapping[str, Sequence[int]], *, ordered: bool) -> None:
    first_with: dict[tuple[int, ...], str] = {}
    for name, tokens in lists.items():
        other = first_with.setdefault(tuple(tokens if ordered else sorted(tokens)), name)
        if other != name:
            rule = "every name must mean another edit" + ("" if ordered else ", whatever the order of its genes")
            raise InputError(uri, rule, f"{other!r} and {name!r} list the same genes", "Leave one of them out.")


def _read_csv(text: str) -> dict[str, list[str]]:
    rows = csv.DictReader(io.StringIO(text))
    if not {"name", "genes"} <= set(rows.fieldnames or ()):
        raise ValueError(f"no columns 'name' and 'genes'; there are {listing(rows.fieldnames or ())}")
    table: dict[str, list[str]] = {}
    for row in rows:
        name, genes = row["name"], row["genes"]
        if not name or genes is None:
            raise ValueError(f"line {rows.line_num} lacks its {'genes' if name else 'name'}")
        if None in row:  # what stands beyond the last column
            raise ValueError(f"line {rows.line_num} has more values than there are columns: {listing(row[None])}")
        if name in table:
            raise ValueError(f"{name!r} stands there twice")
        table[name] = [gene.strip() for gene in genes.split("|") if gene.strip()]
    return table


def _checked(value: dict[str, Any]) -> dict[str, list[str]]:
    for name, genes in value.items():
        if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
            raise ValueError(f"{name!r} is no list of genes")
    return value


def tokens_of(
    vocabulary: GeneVocabulary, genes: Sequence[str], subject: str, symbols: Symbols | None = None
) -> list[int]:
    """Return the token ids of genes.

    Parameters
    ----------
    genes
        Ids as tokenization takes them (with a version or retired, too), or symbols where they are known: those of
        `symbols` outweigh the vocabulary's own.

    Raises
    ------
    InputError
        There is none, one is not in the vocabulary, a symbol has several genes of it, or one is listed twice.
    """
    found = {name: candidates(name, vocabulary, symbols or {}) for name in genes}
    unknown = [name for name, ids in found.items() if not ids]
    several = [f"{name} ({', '.join(ids)})" for name, ids in found.items() if len(ids) > 1]
    known = vocabulary.symbols or symbols
    fix = f"Correct the list; genes are named by Ensembl ID{' or symbol' if known else ' (symbols: --gene-names)'}."
    for names, rule in ((unknown, "every gene must be in the vocabulary"), (several, "a symbol must mean one gene")):
        if names:
            raise InputError(subject, rule, listing(names), fix)
    ids = [found[name][0] for name in genes]
    number = Counter(ids)
    if twice := [name for name, gene in zip(genes, ids, strict=True) if number[gene] > 1]:
        raise InputError(subject, "a gene may be listed once only", listing(dict.fromkeys(twice)), fix)
    if not genes:
        raise InputError(subject, "there must be genes", "none", "List some, or say all.")
    return [vocabulary.genes[gene] for gene in ids]


def candidates(name: str, vocabulary: GeneVocabulary, symbols: Symbols) -> list[str]:
    """Return the genes of the vocabulary that a name may mean."""
    if name in vocabulary.genes:
        return [name]
    told = [gene for gene in symbols.get(name, ()) if gene in vocabulary.genes]
    gene, _ = known_name(name, vocabulary)
    return told or [gene] * (gene in vocabulary.genes)


def _listed(vocabulary: GeneVocabulary, lists: Sequence[Sequence[int]], names: tuple[str, ...] = ()) -> Design:
    _check_number(len(lists))
    token_pk = _padded(lists, max(map(len, lists)))
    genes = ("|".join(vocabulary.gene_of_token[t] for t in tokens) for tokens in lists)
    return Design(names or tuple(genes), token_pk, named=bool(names))


def _padded(lists: Sequence[Sequence[int]], width: int) -> NDArray[np.int32]:
    """Return lists as rows, `NO_TOKEN` at the end of shorter ones."""
    token_pk = np.full((len(lists), width), NO_TOKEN, np.int32)
    for row, tokens in zip(token_pk, lists, strict=True):
        row[: len(tokens)] = tokens
    return token_pk


def _check_number(number: int) -> None:
    if number > MOST_LISTED:
        rule = f"a design may have at most {MOST_LISTED:,} perturbations"
        raise InputError("--genes", rule, f"{number:,}", "List fewer genes, or split the panel.")
