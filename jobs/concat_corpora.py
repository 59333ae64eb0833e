"""Make one token corpus of several."""

from cellray.data.corpora.concatenate import ConcatConfig, concat_corpora
from cellray.errors import listing
from jobs._run import run_job


def main(config: ConcatConfig) -> str:
    """Concatenate and say what came out."""
    made = concat_corpora(config)
    manifest = made.manifest
    lines = [
        f"{manifest.rows:,} cells in {len(manifest.parts):,} shards, "
        f"{'copied' if config.copy_shards else 'which stay where they are'}, from {len(config.corpus):,} corpora; "
        f"obs columns: {', '.join(manifest.obs_kinds) or 'none'}"
    ]
    if made.left_out:
        lines.append(f"obs columns left out, not in every corpus or not asked for: {listing(made.left_out, 30)}")
    return "\n".join([*lines, f"{config.output}: token corpus, digest {manifest.digest[:12]}"])


if __name__ == "__main__":
    run_job("concat_corpora", ConcatConfig, main)
