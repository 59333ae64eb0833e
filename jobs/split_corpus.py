"""Split a token corpus into several: at random, by an obs column, or take some of its values."""

from cellray.data.corpora.splitting import SplitConfig, split_corpus
from jobs._run import run_job


def main(config: SplitConfig) -> str:
    """Split and say how many cells went where."""
    made = split_corpus(config)
    total = sum(source.cells for source in made[0].manifest.sources)
    return "\n".join(
        f"{each.uri}: token corpus of {each.manifest.rows:,} cells ({each.manifest.rows / total:.1%} of the sources' "
        f"{total:,}; {each.title}), digest {each.manifest.digest[:12]}"
        for each in made
    )


if __name__ == "__main__":
    run_job("split_corpus", SplitConfig, main)
