"""Whether a vocabulary was made by this very request before: told by a digest in it, without measuring anything."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cellray import schema, storage
from cellray.data.medians.sketch import ACCURACY
from cellray.data.quality.table import QualityTable
from cellray.data.sources.contract import stamp_of
from cellray.data.sources.locate import expand_sources
from cellray.errors import InputError
from cellray.vocabulary import GeneVocabulary

if TYPE_CHECKING:
    from cellray.data.medians.build import MedianConfig

_AT_ONCE = 16
_FORMAT = 2
"""Since 2 symbols are read from the files of counts as well; nothing else came with it."""


def request_of(options: "MedianConfig", version: int = _FORMAT) -> str:
    """Return the digest of all that decides a vocabulary: every source's version, every option, every table's content.

    Parameters
    ----------
    version
        Of what is made of them.

    Raises
    ------
    InputError
        A file is missing.
    """

    def stamped(uri: str) -> Sequence[object]:
        stamp = stamp_of(uri)
        return [uri, stamp.size, stamp.version]

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        sources = list(threads.map(stamped, expand_sources(options.source)))
    return schema.request_digest(
        artefact="vocabulary",
        sources=sources,
        matrix=options.matrix,
        gene_ids=options.gene_ids,
        n_counts_column=options.n_counts_column,
        generation=options.generation,
        input_size=options.input_size,
        quality=None if options.quality is None else QualityTable.open(options.quality).manifest.digest,
        gene_types=options.gene_types,
        tables=[None if uri is None else _content(uri) for uri in (options.gene_table, options.retired_ids)],
        error=0.0 if options.exact else ACCURACY,
        format=version,
    )


def _content(uri: str) -> str:
    storage.stamp(uri)  # says in plain words that a file is missing
    return storage.sha256_file(uri)


def made_before(output: str, options: "MedianConfig") -> GeneVocabulary | None:
    """Return the vocabulary at an output if this very request made it; None where there is nothing.

    One that an earlier version made of the same request is returned, too: its tokens and medians are the same, and a
    pipeline that is run again must go on with it. It says for itself that it lacks the files' symbols.

    Raises
    ------
    InputError
        The output is something else: found out before hours of measuring, not after.
    """
    if not storage.exists(output):
        return None
    rule, fix = "the output must be new, or hold this very result", "Choose another --output, or delete this one."
    try:
        vocabulary = GeneVocabulary.load(output)
    except InputError:
        raise InputError(output, rule, "a file that is no vocabulary", fix) from None
    made_by = vocabulary.origin.get("request")
    if not any(made_by == request_of(options, version) for version in range(_FORMAT, 0, -1)):
        raise InputError(output, rule, "a vocabulary of other input or options", fix)
    return vocabulary
