"""Take at most so many cells of each class of a token corpus."""

from cellray.data.corpora.splitting import SubsampleConfig, subsample_corpus
from jobs._run import run_job


def main(config: SubsampleConfig) -> str:
    """Draw and say what came out."""
    made = subsample_corpus(config)
    return (
        f"{made.title}: {made.manifest.rows:,} cells in {len(made.manifest.parts):,} shards\n"
        f"{made.uri}: token corpus, digest {made.manifest.digest[:12]}"
    )


if __name__ == "__main__":
    run_job("subsample_corpus", SubsampleConfig, main)
