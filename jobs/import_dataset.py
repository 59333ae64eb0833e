"""Turn a Hugging Face dataset of token rows, as Geneformer's .dataset folders are, into a token corpus."""

from cellray.data.corpora.hf_import import ImportConfig, import_dataset
from cellray.errors import listing
from jobs._run import run_job


def main(config: ImportConfig) -> str:
    """Import and say what came out."""
    made = import_dataset(config)
    manifest = made.manifest
    (source,) = manifest.sources
    dropped = ", ".join(f"{n:,} dropped ({reason})" for reason, n in source.dropped.items() if n) or "none dropped"
    lines = [f"{source.uri}: cells: {source.kept:,} kept of {source.cells:,}, {dropped}"]
    lines.append(f"obs columns: {', '.join(f'{name} ({kind})' for name, kind in manifest.obs_kinds.items()) or 'none'}")
    if made.left_out:
        lines.append(f"columns left out: {listing(made.left_out, 30)}")
    return "\n".join([*lines, f"{config.output}: token corpus, digest {manifest.digest[:12]}"])


if __name__ == "__main__":
    run_job("import_dataset", ImportConfig, main)
