"""Write the attention weights of a model over a token corpus: the largest of each cell, means over cells, pictures."""

from cellray.attention_schema import HEAD_TABLE, PAIR_TABLE, is_special
from cellray.infer.attention import AttentionConfig, attention
from cellray.infer.attention_pictures import draw_attention
from jobs._run import run_job


def main(config: AttentionConfig) -> str:
    """Compute, then draw if asked to."""
    made = attention(config)
    counted, kinds = made.counted, "listed" if made.listed else "found in most cells"
    own = sum(not is_special(name) for name in made.genes)
    queries = f"{len(made.queries):,} queries x " if made.queries else ""
    pairs, heads = made.tables
    lines = [
        f"{counted['cells']:,} cells, layers {_numbers(made.layers)}, heads {_numbers(made.heads)}:"
        f" {made.rows:,} of {counted['weights']:,} weights written",
        *(f"left out: {cells:,} cells {reason}" for reason, cells in made.skipped.items()),
        f"table of pairs: {queries}{own:,} genes {kinds}, of {made.genes_seen:,};"
        f" {counted['pairs_summed']:,} of {counted['pairs']:,} pairs in cells",
        f"{config.output}: {PAIR_TABLE} ({pairs.rows:,} rows), {HEAD_TABLE} ({heads.rows:,} rows)",
    ]
    if config.plots is not None:
        lines.extend(draw_attention(config.output, config.plots, config.gene_names, config.min_cells))
    return "\n".join(lines)


def _numbers(numbers: tuple[int, ...]) -> str:
    every = numbers == tuple(range(len(numbers)))
    return f"0 to {numbers[-1]}" if every and len(numbers) > 1 else ", ".join(map(str, numbers))


if __name__ == "__main__":
    run_job("attention", AttentionConfig, main)
