"""Show what a corpus is made of; with --verify, check that it still is."""

from pydantic import Field
from pydantic_settings import CliPositionalArg

from cellray.config import JobConfig
from cellray.data.corpus import Corpus, damaged_shards
from cellray.data.report import report
from cellray.errors import InputError, listing
from jobs._run import run_job


class InspectConfig(JobConfig):
    """Show the manifest of a token corpus for people."""

    corpus: CliPositionalArg[str] = Field(description="token corpus, from jobs.tokenize_corpus")
    verify: bool = Field(False, description="also recompute the digest of every shard")


def main(config: InspectConfig) -> str:
    """Describe the corpus and, if asked, read it through."""
    corpus = Corpus.open(config.corpus)
    manifest = corpus.manifest
    lines = [
        report(manifest),
        f"obs columns: {', '.join(f'{name} ({kind})' for name, kind in manifest.obs_kinds.items()) or 'none'}",
        f"vocabulary: {len(corpus.vocabulary):,} tokens, digest {corpus.vocabulary.digest[:12]}",
        f"made with {', '.join(f'{name} {version}' for name, version in manifest.software.items())}",
    ]
    if config.verify:
        damaged = damaged_shards(corpus)
        if damaged:
            fix = "Delete these files and the manifest, then tokenize again: the rest is kept."
            raise InputError(corpus.uri, "every shard must be the one in the manifest", listing(damaged), fix)
        lines.append(f"verified {len(manifest.parts):,} shards: all as in the manifest")
    return "\n".join([*lines, f"{corpus.uri}: token corpus, digest {manifest.digest[:12]}"])


if __name__ == "__main__":
    run_job("inspect_corpus", InspectConfig, main)
