"""Labels of genes: a table of classes and their genes, in terms of a vocabulary's tokens.

Knows nothing of cells or splits.
"""

import csv
import io
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray import storage
from cellray.data.gene_ids import known_name
from cellray.errors import InputError, listing
from cellray.vocabulary import GeneVocabulary

_LEAST_GENES = 2  # one to learn from, one to test on


@dataclass(frozen=True)
class GeneLabels:
    """Classes of genes.

    Attributes
    ----------
    classes
        In the order of the head's outputs: that of the table.
    token_g
        Token ids of the labelled genes, ascending. Shape (genes,).
    code_g
        Index into `classes`. Shape (genes,).
    genes
        Ids in the vocabulary.
    unknown
        Names of each class that the vocabulary lacks.
    without_median
        Genes of each class that have a token but no median, so that no cell ever holds them.
    repeated
        Names that stand for a gene named before in the same class.
    """

    classes: tuple[str, ...]
    token_g: NDArray[np.int64]
    code_g: NDArray[np.int32]
    genes: tuple[str, ...]
    unknown: Mapping[str, tuple[str, ...]]
    without_median: Mapping[str, tuple[str, ...]]
    repeated: int

    @property
    def counts(self) -> dict[str, int]:
        """Genes of each class."""
        found = np.bincount(self.code_g, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, found, strict=True))

    def by_token(self, value_g: NDArray[np.integer], tokens: int) -> NDArray[np.int32]:
        """Spread a value a gene over the token ids, -1 for tokens without one. Shape (tokens,)."""
        table = np.full(tokens, -1, np.int32)
        table[self.token_g] = value_g
        return table


def read_gene_classes(uri: str) -> dict[str, list[str]]:
    """Read a table of gene classes.

    Parameters
    ----------
    uri
        `.toml` or `.json`: class = list of gene names; `.csv`: columns `class` and `gene`, a row for each gene.

    Raises
    ------
    InputError
        The file is missing or of another form.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix not in _PARSERS:
        found = f"ending {suffix!r}"
        raise InputError(uri, f"a table of gene classes ends in {listing(_PARSERS)}", found, "Convert it.")
    try:
        table = _PARSERS[suffix](storage.read_bytes(uri).decode("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(uri, "the table of gene classes must exist", "no such file", "Check the path.") from None
    except (ValueError, KeyError) as error:
        raise InputError(uri, "the table of gene classes must be readable", str(error), "Correct the file.") from None
    wrong = [] if isinstance(table, dict) else ["the whole"]
    wrong = wrong or [name for name, genes in table.items() if not _is_list_of_text(genes)]
    if wrong:
        raise InputError(uri, "each class must have a list of gene names", listing(wrong), "Correct the file.")
    return {str(name): genes for name, genes in table.items()}


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _parse_csv(text: str) -> dict[str, list[str]]:
    rows = csv.DictReader(io.StringIO(text))
    if not {"class", "gene"} <= set(rows.fieldnames or ()):
        raise ValueError(f"no columns 'class' and 'gene'; there are {listing(rows.fieldnames or ())}")
    table: dict[str, list[str]] = {}
    for row in rows:
        table.setdefault(row["class"] or "", []).append(row["gene"] or "")
    return table


_PARSERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads, ".csv": _parse_csv}


def gene_labels(
    table: Mapping[str, Sequence[str]], vocabulary: GeneVocabulary, folds: int = 1, subject: str = "gene classes"
) -> GeneLabels:
    """Find the tokens of labelled genes.

    Parameters
    ----------
    table
        Names of each class: Ensembl IDs (with or without version, retired ones through the vocabulary's table) or
        symbols that the vocabulary knows.
    vocabulary
        Of the model and the corpus.
    folds
        Parts the genes will be cut into: a class needs as many genes, and two in any case.
    subject
        What the table is called in messages.

    Raises
    ------
    InputError
        There are fewer than two classes, a gene is in two of them, or a class has too few genes with tokens.
    """
    classes = tuple(table)
    owner: dict[str, dict[str, None]] = {}  # of a gene: its classes, in their order
    unknown: dict[str, tuple[str, ...]] = {}
    without_median: dict[str, tuple[str, ...]] = {}
    repeated = 0
    for name in classes:
        found = [(given, known_name(given, vocabulary)[0]) for given in table[name] if given.strip()]
        unknown[name] = tuple(given for given, gene in found if gene not in vocabulary.genes)
        silent = (gene for _, gene in found if gene in vocabulary.genes and gene not in vocabulary.medians)
        without_median[name] = tuple(dict.fromkeys(silent))
        usable = [gene for _, gene in found if gene in vocabulary.medians]
        repeated += len(usable) - len(set(usable))
        for gene in usable:
            owner.setdefault(gene, {})[name] = None
    _check(classes, owner, unknown, max(_LEAST_GENES, folds), subject)
    genes = sorted(owner, key=lambda gene: vocabulary.genes[gene])
    return GeneLabels(
        classes=classes,
        token_g=np.array([vocabulary.genes[gene] for gene in genes], np.int64),
        code_g=np.array([classes.index(next(iter(owner[gene]))) for gene in genes], np.int32),
        genes=tuple(genes),
        unknown=unknown,
        without_median=without_median,
        repeated=repeated,
    )


def _check(
    classes: Sequence[str],
    owner: Mapping[str, Mapping[str, None]],
    unknown: Mapping[str, Sequence[str]],
    least: int,
    subject: str,
) -> None:
    if len(classes) < 2:
        raise InputError(subject, "there must be at least two classes", listing(classes), "Add a class.")
    several = [f"{gene} ({' and '.join(names)})" for gene, names in owner.items() if len(names) > 1]
    if several:
        raise InputError(subject, "a gene may be in one class only", listing(several), "Take it out of the others.")
    for name in classes:
        n = sum(name in names for names in owner.values())
        if n < least:
            rule = f"every class must have at least {least} genes that can be encoded"
            found = f"{n} in {name!r}; not in the vocabulary: {listing(unknown[name])}"
            raise InputError(subject, rule, found, "Check ids and species, or leave the class out.")
