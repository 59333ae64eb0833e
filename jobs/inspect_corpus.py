"""Show what a corpus is made of and what its cells are like, or how far a screen is; --verify checks a corpus."""

from pydantic import Field
from pydantic_settings import CliPositionalArg

from cellray import storage
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus, damaged_shards
from cellray.data.corpora.statistics import corpus_statistics, describe
from cellray.data.report import report
from cellray.errors import InputError, listing
from cellray.infer.partial import describe_screen, is_screen
from cellray.plots import length_histogram_png
from jobs._run import run_job


class InspectConfig(JobConfig):
    """Show the manifest of a token corpus, and on request its statistics, for people."""

    corpus: CliPositionalArg[str] = Field(description="token corpus, or shifts, finished or not")
    verify: bool = Field(False, description="also recompute the digest of every shard")
    statistics: bool = Field(False, description="also count lengths and obs labels over all cells")
    plot: str | None = Field(None, description="also draw the histogram of lengths to this .png")
    top: int = Field(10, ge=1, description="most labels shown of each obs column")


def main(config: InspectConfig) -> str:
    """Describe the corpus and, if asked, read it through; or describe a screen."""
    if is_screen(config.corpus) and not config.statistics and config.plot is None:
        return describe_screen(config.corpus, verify=config.verify)
    corpus = Corpus.open(config.corpus)
    manifest = corpus.manifest
    lines = [
        report(manifest),
        f"obs columns: {', '.join(f'{name} ({kind})' for name, kind in manifest.obs_kinds.items()) or 'none'}",
        f"vocabulary: {len(corpus.vocabulary):,} tokens, digest {corpus.vocabulary.digest[:12]}",
        f"made by {manifest.made_by}"
        + "".join(f"; from {parent.uri}, digest {parent.digest[:12]}" for parent in manifest.parents),
        f"made with {', '.join(f'{name} {version}' for name, version in manifest.software.items())}",
    ]
    if config.verify:
        damaged = damaged_shards(corpus)
        if damaged:
            fix = (
                "Restore them, or delete them and the manifest and run the job that made them again: the rest is kept."
            )
            raise InputError(corpus.uri, "every shard must be the one in the manifest", listing(damaged), fix)
        lines.append(f"verified {len(manifest.parts):,} shards: all as in the manifest")
    if config.statistics or config.plot is not None:
        counted = corpus_statistics(corpus)
        lines.append(describe(counted, config.top))
        if config.plot is not None:
            with storage.atomic_file(storage.absolute(config.plot)) as path:
                length_histogram_png(counted.length_counts, path, f"{counted.cells:,} cells")
            lines.append(f"{config.plot}: histogram of lengths")
    return "\n".join([*lines, f"{corpus.uri}: token corpus, digest {manifest.digest[:12]}"])


if __name__ == "__main__":
    run_job("inspect_corpus", InspectConfig, main)
