"""Tell how specific to their context the embeddings of genes are."""

from cellray.infer.gene_contexts import GeneContextConfig, gene_contexts
from jobs._run import run_job


def main(config: GeneContextConfig) -> str:
    """Compare the contexts and say what was left out."""
    manifest = gene_contexts(config)
    left_out = [f"left out: {found:,} {reason}" for reason, found in manifest.dropped.items() if found]
    told = f"{config.output}: {manifest.rows:,} genes in {len(manifest.notes['contexts']):,} contexts"
    return "\n".join([*left_out, told])


if __name__ == "__main__":
    run_job("gene_contexts", GeneContextConfig, main)
