"""The gene vocabulary: gene id <-> token id <-> nonzero median, special tokens, gene names, a digest.

One JSON file. It knows nothing of count matrices or models; whoever encodes counts or loads weights compares digests.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from cellray import storage
from cellray.errors import InputError, listing
from cellray.formats import require_known_version
from cellray.safe_pickle import load_plain_dict

PAD, MASK, CLS, EOS = "<pad>", "<mask>", "<cls>", "<eos>"
SPECIAL_TOKENS: dict[str, tuple[str, ...]] = {"v1": (PAD, MASK), "v2": (PAD, MASK, CLS, EOS)}
"""Special tokens of the two generations of Geneformer, in the order of their ids."""
INPUT_SIZE = {"v1": 2048, "v2": 4096}
"""Tokens a row of each generation holds."""
MAX_TOKENS = 1 << 16

IdType = Literal["ensembl", "symbol"]
_FORMAT, _VERSION = "cellray vocabulary", 1


@dataclass(frozen=True)
class TokenLayout:
    """How a token row is laid out: at most `input_size` tokens, special tokens included.

    `cls_id` in front and `eos_id` at the end (V2); None for rows of genes alone (V1).
    """

    input_size: int
    cls_id: int | None = None
    eos_id: int | None = None

    @property
    def max_genes(self) -> int:
        """Most gene tokens a row can hold."""
        return self.input_size - (self.cls_id is not None) - (self.eos_id is not None)


@dataclass(frozen=True, eq=False)
class GeneVocabulary:
    """Gene ids, their token ids and nonzero medians, and the special tokens.

    Attributes
    ----------
    special_tokens
        Name to token id, as `{"<pad>": 0, "<mask>": 1}`.
    genes
        Gene id to token id, ascending by token id.
    medians
        Gene id to nonzero median, in counts per 10,000. A gene without one has a token but is never encoded.
    input_size
        Most tokens of a row, special tokens included.
    id_type
        What gene ids are: Ensembl IDs, or symbols for data that have nothing else.
    symbols
        Gene symbol to gene id; empty if unknown.
    retired_ids
        Earlier gene id to the current one; empty if unknown.
    origin
        How the medians were measured, from how many cells; empty if unknown. No part of any digest.
    """

    special_tokens: Mapping[str, int]
    genes: Mapping[str, int]
    medians: Mapping[str, float]
    input_size: int
    id_type: IdType = "ensembl"
    symbols: Mapping[str, str] = field(default_factory=dict)
    retired_ids: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [*self.special_tokens.values(), *self.genes.values()]
        for rule, broken in (
            ("there must be genes", not self.genes),
            (f"{PAD} and {MASK} are needed", not {PAD, MASK} <= set(self.special_tokens)),
            (f"{CLS} and {EOS} come together", (CLS in self.special_tokens) != (EOS in self.special_tokens)),
            ("token ids must be 0, 1, 2, ... without gap or repetition", sorted(ids) != list(range(len(ids)))),
            (f"token ids must be below {MAX_TOKENS:,}", len(ids) > MAX_TOKENS),
            ("medians must be positive and finite", not all(0 < m < np.inf for m in self.medians.values())),
            ("every gene with a median must have a token", not set(self.medians) <= set(self.genes)),
            ("the input size must leave room for a gene", self.input_size <= len(self.special_tokens)),
        ):
            if broken:
                raise InputError("vocabulary", rule, f"{len(ids):,} tokens", "Rebuild it with jobs.build_vocabulary.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeneVocabulary) and self.full_digest == other.full_digest

    def __hash__(self) -> int:
        return hash(self.full_digest)

    def __repr__(self) -> str:  # the dictionaries would flood a notebook
        return f"GeneVocabulary: {len(self):,} tokens, {self.id_type} ids, rows of {self.input_size:,} tokens at most"

    def __len__(self) -> int:
        """Return the number of tokens, special ones included: the rows of a model's embedding table."""
        return len(self.special_tokens) + len(self.genes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what a token row means: token ids and medians. Models and corpora are matched by it."""
        return storage.sha256_json([dict(self.special_tokens), dict(self.genes), dict(self.medians)])

    @cached_property
    def full_digest(self) -> str:
        """SHA-256 of everything, with the tables that decide which input genes are recognised."""
        return storage.sha256_json(
            [self.digest, self.input_size, self.id_type, dict(self.symbols), dict(self.retired_ids)]
        )

    @cached_property
    def median_of_token(self) -> NDArray[np.float64]:
        """Median of each token id, NaN for special tokens and genes without one. Shape (tokens,)."""
        table = np.full(len(self), np.nan)
        for gene, median in self.medians.items():
            table[self.genes[gene]] = median
        return table

    @cached_property
    def gene_of_token(self) -> Mapping[int, str]:
        """Gene id of each gene token."""
        return {token: gene for gene, token in self.genes.items()}

    def layout(self, input_size: int | None = None) -> TokenLayout:
        """Return the row layout of this vocabulary, with another input size if given."""
        size = self.input_size if input_size is None else input_size
        return TokenLayout(size, self.special_tokens.get(CLS), self.special_tokens.get(EOS))

    def to_json(self) -> bytes:
        """Serialise; equal vocabularies give equal bytes."""
        value = {
            "format": _FORMAT,
            "version": _VERSION,
            "digest": self.digest,
            "full_digest": self.full_digest,
            "id_type": self.id_type,
            "input_size": self.input_size,
            "special_tokens": dict(self.special_tokens),
            "genes": dict(self.genes),
            "medians": dict(self.medians),
            "symbols": dict(self.symbols),
            "retired_ids": dict(self.retired_ids),
            **({"origin": dict(self.origin)} if self.origin else {}),
        }
        # a line for each table: indenting more would take seven times as long
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(each, allow_nan=False)}" for key, each in value.items())
        content = f"{lines}\n}}\n".encode()
        return b'{"content": "%s",\n' % storage.sha256_bytes(content).encode() + content

    def save(self, uri: str) -> None:
        """Write the JSON file, in one step."""
        storage.write_bytes(uri, self.to_json())

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read a vocabulary and check its digests.

        Raises
        ------
        InputError
            The file is missing, is no vocabulary, or was changed by hand.
        """
        value, untouched = _read(uri)
        if isinstance(value, dict) and value.get("format") == _FORMAT:
            require_known_version(uri, _FORMAT, value.get("version"), _VERSION)
        if not isinstance(value, dict) or value.get("format") != _FORMAT or value.get("version") != _VERSION:
            raise InputError(
                uri,
                f"the file must be a {_FORMAT}, version {_VERSION}",
                f"{value.get('format')!r}, version {value.get('version')!r}"
                if isinstance(value, dict)
                else "other JSON",
                "Make one with jobs.build_vocabulary.",
            )
        stored = {key: value.pop(key, None) for key in ("format", "version", "digest", "full_digest")}
        try:
            vocabulary = cls(**value)
        except (TypeError, AttributeError) as error:
            raise InputError(uri, "a vocabulary has fixed fields", str(error), "Make it anew.") from None
        if untouched:  # then so are the digests, which take long to compute
            vocabulary.__dict__.update(digest=stored["digest"], full_digest=stored["full_digest"])
        if (stored["digest"], stored["full_digest"]) != (vocabulary.digest, vocabulary.full_digest):
            raise InputError(uri, "the content must match its digest", "other content", "Restore or rebuild the file.")
        return vocabulary

    @classmethod
    def from_medians(
        cls, medians: Mapping[str, float], generation: str, id_type: IdType, input_size: int | None = None
    ) -> Self:
        """Give tokens to genes with a median: special tokens first, then genes in the order of their ids."""
        special = {name: i for i, name in enumerate(SPECIAL_TOKENS[generation])}
        ordered = sorted(medians)
        return cls(
            special_tokens=special,
            genes={gene: i + len(special) for i, gene in enumerate(ordered)},
            medians={gene: float(medians[gene]) for gene in ordered},
            input_size=input_size or INPUT_SIZE[generation],
            id_type=id_type,
        )


def check_match(found: str, found_vocabulary: GeneVocabulary, wanted: str, wanted_vocabulary: GeneVocabulary) -> None:
    """Check that two artefacts mean the same by their tokens.

    Parameters
    ----------
    found, wanted
        What they are called in the message, as "model DIR".

    Raises
    ------
    InputError
        Token ids or medians differ.
    """
    if found_vocabulary.digest != wanted_vocabulary.digest:
        raise InputError(
            found,
            f"its vocabulary must be that of {wanted}",
            f"{len(found_vocabulary):,} tokens, digest {found_vocabulary.digest[:12]}, against "
            f"{len(wanted_vocabulary):,} tokens, digest {wanted_vocabulary.digest[:12]}",
            "Tokenize with the model's own vocabulary.json, or choose the model that was trained with this one.",
        )


def import_official(directory: Path, input_size: int | None = None) -> GeneVocabulary:
    """Read the dictionaries released with Geneformer, without running anything they name.

    Parameters
    ----------
    directory
        Holds one `token_dictionary*.pkl`, one `gene_median_dictionary*.pkl` and, if there are, one
        `gene_name_id_dict*.pkl` and one `ensembl_mapping_dict*.pkl`.
    input_size
        Tokens a row holds; 2,048 (V1, no `<cls>`) or 4,096 (V2) if None.

    Raises
    ------
    InputError
        A dictionary is missing, stands there twice, or holds more than plain values.
    """
    return read_official(
        _only(directory, "token_dictionary*.pkl"),
        _only(directory, "gene_median_dictionary*.pkl"),
        _optional(directory, "gene_name_id_dict*.pkl"),
        _optional(directory, "ensembl_mapping_dict*.pkl"),
        input_size,
    )


def read_official(
    tokens: Path,
    medians: Path | None = None,
    names: Path | None = None,
    mapping: Path | None = None,
    input_size: int | None = None,
) -> GeneVocabulary:
    """Read released dictionaries by the names of their files; see `import_official`.

    Parameters
    ----------
    tokens
        Gene to token id, with the special tokens.
    medians
        Gene to nonzero median; None: tokens can be read by the vocabulary, cells cannot be encoded.
    names, mapping
        Symbol to gene, and earlier gene id to the current one.

    Raises
    ------
    InputError
        A file is missing or holds more than plain values.
    """
    token_of, median_of = _numbers(tokens, int), {} if medians is None else _numbers(medians, float)
    special = {name: token for name, token in token_of.items() if name.startswith("<")}
    genes = {gene: token for gene, token in sorted(token_of.items(), key=lambda item: item[1]) if gene not in special}
    return GeneVocabulary(
        special_tokens=special,
        genes=genes,
        medians={gene: median_of[gene] for gene in genes if gene in median_of},
        input_size=input_size or INPUT_SIZE["v2" if CLS in special else "v1"],
        symbols=_strings(names),
        retired_ids={old: new for old, new in _strings(mapping).items() if old != new},
    )


def _only(directory: Path, pattern: str) -> Path:
    """Return the one file of a directory that matches a pattern."""
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise InputError(
            str(directory),
            f"the directory must hold exactly one {pattern}",
            listing(p.name for p in found),
            "Name the directory with the released dictionaries of one model generation.",
        )
    return found[0]


def _numbers(path: Path, kind: type[Any]) -> dict[str, Any]:
    """Read a dictionary whose values are numbers."""
    table = load_plain_dict(path)
    wrong = [key for key, value in table.items() if isinstance(value, str)]
    if wrong:
        raise InputError(str(path), "every value must be a number", f"text for {listing(wrong)}", "Use the right file.")
    return {key: kind(value) for key, value in table.items()}


def _optional(directory: Path, pattern: str) -> Path | None:
    """Return the one file of a directory that matches a pattern, if there is any."""
    return _only(directory, pattern) if list(directory.glob(pattern)) else None


def _strings(path: Path | None) -> dict[str, str]:
    """Read an optional dictionary whose values are strings."""
    return {} if path is None else {key: str(value) for key, value in sorted(load_plain_dict(path).items())}


def _read(uri: str) -> tuple[Any, bool]:
    """Read a vocabulary's JSON and tell whether it is, byte for byte, what was written."""
    value, data = storage.read_json_bytes(uri)
    first, _, content = data.partition(b"\n")
    told = value.pop("content", None) if isinstance(value, dict) else None
    return value, told is not None and first.endswith(b",") and told == storage.sha256_bytes(content)
