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


def request_of(options: "MedianConfig") -> str:
    """Return the digest of all that decides a vocabulary: every source's version, every option, every table's content.

    Raises
    ------
    InputError
        A file is missing.
    """

    def version(uri: str) -> Sequence[object]:
        stamp = stamp_of(uri)
        return [uri, stamp.size, stamp.version]

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        sources = list(threads.map(version, expand_sources(options.source)))
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
        format=1,
    )


def _content(uri: str) -> str:
    storage.stamp(uri)  # says in plain words that a file is missing
    return storage.sha256_file(uri)


def made_before(output: str, options: "MedianConfig") -> GeneVocabulary | None:
    """Return the vocabulary at an output if this very request made it; None where there is nothing.

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
    if vocabulary.origin.get("request") != request_of(options):
        raise InputError(output, rule, "a vocabulary of other input or options", fix)
    return vocabulary
