"""The dictionaries that options name, as a vocabulary; and the vocabulary of a dataset's tokens."""

from pathlib import Path

from cellray import schema, storage
from cellray.compat.official_files import model_vocabulary
from cellray.errors import InputError, listing
from cellray.models import open_model
from cellray.vocabulary import GeneVocabulary, read_official

File = str | Path | None


def read_dictionaries(
    tokens: File, medians: File = None, names: File = None, mapping: File = None, input_size: int | None = None
) -> GeneVocabulary:
    """Read released pickles, or a `vocabulary.json` of ours in place of the first.

    Raises
    ------
    InputError
        A file is missing or another thing, cells are to be encoded without medians, or a `vocabulary.json` is to be
        changed by further files.
    """
    if tokens is not None and str(tokens).endswith(".json"):
        if further := [str(file) for file in (medians, names, mapping) if file is not None]:
            fix = "Leave the other files out, or name released pickles: a vocabulary.json holds all of theirs."
            raise InputError(str(tokens), "a vocabulary.json is named alone", listing(further), fix)
        return GeneVocabulary.load(str(tokens))
    if tokens is None or medians is None:
        fix = "Name token_dictionary_file and gene_median_file, or a vocabulary.json as token_dictionary_file."
        given = [str(file) for file in (tokens, medians, names, mapping) if file is not None]
        found = f"{listing(given)} alone" if given else "none"
        raise InputError("dictionaries", "tokens and medians go together", found, fix)
    named, mapped = (None if file is None else Path(file) for file in (names, mapping))
    return read_official(Path(tokens), Path(medians), named, mapped, input_size)


def dataset_vocabulary(dataset: str, model: str | None, tokens: File) -> GeneVocabulary:
    """Return the vocabulary of a dataset's tokens: its own, the named one, or that of the model.

    Parameters
    ----------
    dataset
        A directory written by `save_to_disk`; ours hold a `vocabulary.json`.
    model
        Directory or name of the model that reads it, if that is known.
    tokens
        Released `token_dictionary*.pkl`, or `vocabulary.json`; None: not named.

    Raises
    ------
    InputError
        There is none, or the named one gives other tokens than the dataset's own.
    """
    beside = storage.join(dataset, schema.VOCABULARY)
    own = GeneVocabulary.load(beside) if storage.exists(beside) else None
    if tokens is None:
        if own is None and model is None:
            fix = "Name token_dictionary_file."
            raise InputError(dataset, "a dataset needs the vocabulary it was tokenized with", "none in it", fix)
        return own or model_vocabulary(open_model(str(model))[0])
    json = str(tokens).endswith(".json")
    given = GeneVocabulary.load(str(tokens)) if json else read_official(Path(tokens))
    if own is not None and not _same_tokens(own, given):
        found, fix = f"{len(given):,} tokens against {len(own):,}", "Leave token_dictionary_file out."
        raise InputError(str(tokens), f"must give the tokens of {dataset}", found, fix)
    of_model = (
        None if model is None else open_model(model)[0].vocabulary
    )  # with medians, which a dictionary of tokens has not
    return own or (of_model if of_model is not None and _same_tokens(of_model, given) else given)


def _same_tokens(one: GeneVocabulary, other: GeneVocabulary) -> bool:
    return (one.genes, one.special_tokens) == (other.genes, other.special_tokens)
