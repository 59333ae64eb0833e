"""Released models and dictionaries by their names: where they lie on this machine. Nothing is downloaded.

A model is named by a directory, an s3:// URI or `models:/NAME@ALIAS`, or by the name it was released under; that is
looked up in a table of the caller's and in the folder of the environment variable `CELLRAY_GENEFORMER`; or by the
directory where the official classifier would have put it. Released directories hold no vocabulary: their dictionaries
are looked for around them, and tried by their number of tokens.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cellray import storage
from cellray.config import OFFICIAL_FILES
from cellray.errors import InputError, listing
from cellray.model.checkpoint import CONFIG, ModelDirectory
from cellray.vocabulary import GeneVocabulary, import_official

_SAME = (
    ("gf-6L-10M-i2048", "gf-6L-30M-i2048", "Geneformer-V1-10M"),
    ("gf-12L-40M-i2048", "gf-12L-30M-i2048"),
    ("gf-12L-40M-i2048-CZI-CellxGene",),
    ("gf-12L-38M-i4096", "gf-12L-95M-i4096"),
    ("gf-12L-38M-i4096-CLcancer", "gf-12L-95M-i4096-CLcancer", "gf-12L-95M-i4096_CLcancer"),
    ("gf-20L-151M-i4096", "gf-20L-95M-i4096"),
    ("gf-12L-104M-i4096", "Geneformer-V2-104M"),
    ("gf-12L-104M-i4096-CLcancer", "Geneformer-V2-104M_CLcancer"),
    ("gf-18L-316M-i4096", "Geneformer-V2-316M"),
)
RELEASED: dict[str, tuple[str, ...]] = {name: names for names in _SAME for name in names}
"""Name of a released model to all names it has, or had: its folder bears one of them."""
_TRAINED = re.compile(
    r"(?P<place>.*/)?\d{6,}_geneformer_(cell|gene)Classifier_(?P<prefix>[^/]+?)(/ksplit(?P<split>\d+))?/?"
)
_DICTIONARY_FOLDERS = (".", "geneformer", "geneformer/gene_dictionaries_30m", "gene_dictionaries_30m", "v1", "v2", "v3")


def model_directory(name: str, models: Mapping[str, str] | None = None) -> str:
    """Return the directory, URI or registered name of a model.

    Parameters
    ----------
    name
        A directory or URI, `models:/...`, a name of `RELEASED`, or `DIRECTORY/DATE_geneformer_cellClassifier_PREFIX`
        with or without `/ksplit1`, which means our `DIRECTORY/PREFIX.model` where there is no such directory.
    models
        Names to directories, of the caller's.

    Raises
    ------
    InputError
        A released model is not on this machine, or a model of a single fold is asked for, which is not kept.
    """
    if models and name in models:
        return str(models[name])
    if (trained := _TRAINED.fullmatch(name)) and not Path(name).exists():
        if trained["split"] not in (None, "1"):
            rule, fix = "models of single folds are not kept", "Name ksplit1: the model that all cells trained."
            raise InputError(name, rule, f"ksplit{trained['split']}", fix)
        return f"{trained['place'] or ''}{trained['prefix']}.model"
    if name not in RELEASED or Path(name).is_dir():
        return str(name)
    found = [path for home in _homes() for path in _named(home, RELEASED[name])]
    if not found:
        given = os.environ.get(OFFICIAL_FILES)
        where = f"none of {listing(RELEASED[name])} in {OFFICIAL_FILES}={given}" if given else f"no {OFFICIAL_FILES}"
        fix = (
            "Models are not downloaded: clone https://huggingface.co/ctheodoris/Geneformer with git lfs and set "
            f"{OFFICIAL_FILES} to its folder, or name the model's directory."
        )
        raise InputError(name, "a released model must be on this machine", where, fix)
    return str(found[0])


def _homes() -> list[Path]:
    given = os.environ.get(OFFICIAL_FILES)
    return [Path(given).expanduser()] if given else []


def _named(home: Path, names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        yield from sorted(path.parent for path in (*home.glob(f"{name}/{CONFIG}"), *home.glob(f"*/{name}/{CONFIG}")))


def model_vocabulary(model: ModelDirectory, given: GeneVocabulary | None = None) -> GeneVocabulary:
    """Return the vocabulary of a model: the given one, its own, or the released dictionaries that fit it.

    Raises
    ------
    InputError
        No dictionaries of as many tokens as the model has are beside it or in the folder of `CELLRAY_GENEFORMER`.
    """
    if (own := given or model.vocabulary) is not None:
        return own
    beside = [Path(model.uri), *list(Path(model.uri).parents)[:2]] if storage.is_local(model.uri) else []
    seen = []
    for found in _dictionaries([*beside, *_homes()]):
        if len(found) == model.config.vocab_size:
            return found
        seen.append(f"{len(found):,}")
    rule = f"the genes of its {model.config.vocab_size:,} tokens must be known"
    told = f"no {GENE_FILES}" if not seen else f"dictionaries of {', '.join(seen)} tokens"
    fix = f"Lay its dictionaries beside it, set {OFFICIAL_FILES} to a clone of the released files, or name them."
    raise InputError(model.uri, rule, told, fix)


GENE_FILES = "token_dictionary*.pkl with gene_median_dictionary*.pkl"


def released_vocabulary(generation: str, input_size: int | None = None) -> GeneVocabulary:
    """Return the released dictionaries of a generation (`v1`, `v2`) in the folder of `CELLRAY_GENEFORMER`.

    Raises
    ------
    InputError
        There are none.
    """
    for folder in _dictionary_folders(_homes()):
        found = import_official(folder, input_size)
        if ("<cls>" in found.special_tokens) == (generation == "v2"):
            return found
    fix = f"Name token_dictionary_file and gene_median_file, or set {OFFICIAL_FILES} to a clone of the released files."
    raise InputError(f"model_version {generation.upper()}", "its dictionaries must be on this machine", "none", fix)


def _dictionaries(places: list[Path]) -> Iterator[GeneVocabulary]:
    for folder in _dictionary_folders(places):
        yield import_official(folder)


def _dictionary_folders(places: list[Path]) -> Iterator[Path]:
    for folder in dict.fromkeys(place / name for place in places for name in _DICTIONARY_FOLDERS):
        if all(list(folder.glob(pattern)) for pattern in ("token_dictionary*.pkl", "gene_median_dictionary*.pkl")):
            yield folder
