"""What the functions for notebooks share: an AnnData as a temporary corpus of the model's rows, and their arguments.

Knows no job: what is made of the corpus is given to it.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from cellray import schema
from cellray.data.corpora.corpus import Corpus, read_rows
from cellray.data.memory_corpus import SUBJECT, Reading, corpus_of
from cellray.errors import InputError, nearest
from cellray.model.checkpoint import ModelDirectory
from cellray.vocabulary import GeneVocabulary

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


def with_corpus(
    adata: "AnnData",
    model: ModelDirectory,
    vocabulary: GeneVocabulary,
    reading: Reading,
    make: Callable[[Corpus, Path], ResultT],
) -> ResultT:
    """Encode cells into a temporary corpus, in rows as long as the model takes, and return what is made of it.

    Rows that are shorter than the vocabulary's for the model's sake are told of, as `jobs.tokenize_corpus --input-size`
    has to be told.

    Parameters
    ----------
    make
        Takes the corpus and its folder, which is removed afterwards.

    Raises
    ------
    InputError
        These are no raw counts, hardly a gene is known, an obs column is missing, or no cell is left.
    """
    size = min(vocabulary.input_size, int(model.config.max_position_embeddings))
    with TemporaryDirectory(prefix="cellray-") as folder:
        try:
            corpus = corpus_of(adata, vocabulary, f"{folder}/corpus", reading, size)
            if size < vocabulary.input_size:
                _tell_cut(corpus, size)
            return make(corpus, Path(folder))
        except InputError as error:  # people do not know the folder
            subject = SUBJECT if error.subject.startswith(folder) else error.subject
            raise InputError(subject, error.rule, error.found, error.fix) from None


def _tell_cut(corpus: Corpus, size: int) -> None:
    """Tell how many rows are as long as can be: their cells have that many genes or more."""
    parts = corpus.manifest.parts
    lengths = [read_rows(part.uri_in(corpus.uri), 0, part.rows, [schema.LENGTH])[schema.LENGTH] for part in parts]
    full = sum(int((each.to_numpy() == size).sum()) for each in lengths)
    if full:
        told = "rows are cut to the %d tokens that this model takes: %d of %d cells have as many or more"
        logger.warning(told, size, full, corpus.manifest.rows)


def check_arguments(caller: str, given: Iterable[str], known: Collection[str]) -> None:
    """Check the names of a function's arguments.

    Raises
    ------
    InputError
        One is unknown; the message names the function and all that it takes.
    """
    unknown = [(name, nearest(name, known)) for name in given if name not in known]
    if unknown:
        told = ", ".join(f"{name!r} (did you mean {near!r}?)" if near else repr(name) for name, near in unknown)
        rule = f"takes the arguments {', '.join(known)}"
        raise InputError(caller, rule, told, f"See help({caller}).")


@contextmanager
def named(caller: str, inner: str) -> Iterator[None]:
    """Let errors of a function name the one that a person called."""
    try:
        yield
    except InputError as error:
        if error.subject != inner:
            raise
        raise InputError(caller, error.rule, error.found, error.fix.replace(inner, caller)) from None
