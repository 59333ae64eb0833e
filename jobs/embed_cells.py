"""Embed every cell of a token corpus; optionally write an .h5ad and draw the UMAP."""

from cellray.infer.embed import EmbedConfig, embed_cells
from cellray.infer.results import Embeddings, check_h5ad_target, draw_umap, write_h5ad
from jobs._run import run_job


def main(config: EmbedConfig) -> str:
    """Embed, then make what else was asked for."""
    if config.h5ad is not None:
        check_h5ad_target(config.h5ad, config.corpus)
    manifest = embed_cells(config)
    made = [f"{config.output}: {manifest.rows:,} embeddings of width {manifest.width}"]
    embeddings = Embeddings.open(config.output)
    if config.h5ad is not None:
        cells, embedded = write_h5ad(embeddings, config.h5ad)
        made.append(f"{config.h5ad}: {cells:,} cells, {embedded:,} with an embedding")
    if config.umap is not None and config.label is not None:
        drawn = draw_umap(embeddings, config.label, config.umap, f"{config.pooling} embeddings, layer {config.layer}")
        made.append(f"{config.umap}: UMAP of {drawn:,} cells")
    return "\n".join(made)


if __name__ == "__main__":
    run_job("embed_cells", EmbedConfig, main)
