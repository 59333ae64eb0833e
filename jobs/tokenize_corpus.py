"""Turn files of raw counts into a token corpus."""

from cellray.data.report import report
from cellray.data.tokenization import TokenizeConfig, dry_run, tokenize_corpus
from jobs._run import run_job


def main(config: TokenizeConfig) -> str:
    """Tokenize and report what was mapped, kept and dropped."""
    if config.dry_run:
        return dry_run(config)
    manifest = tokenize_corpus(config)
    return f"{report(manifest)}\n{config.output}: token corpus, digest {manifest.digest[:12]}"


if __name__ == "__main__":
    run_job("tokenize_corpus", TokenizeConfig, main)
