"""Tells people what became of the sources of a corpus."""

from cellray.schema import CorpusManifest


def report(manifest: CorpusManifest) -> str:
    """Tell people what was mapped, kept and dropped."""
    lines = []
    for source in manifest.sources:
        genes = source.genes
        dropped = ", ".join(f"{n:,} dropped ({reason})" for reason, n in source.dropped.items() if n) or "none dropped"
        lines.append(
            f"{source.uri}: genes from {genes.ids_from}: {genes.known:,} known of {genes.columns:,} columns "
            f"({genes.summed:,} summed into others, {genes.without_median:,} without median, "
            f"{genes.unknown:,} unknown); cells: {source.kept:,} kept of {source.cells:,}, {dropped}"
        )
        if source.stored_zeros:
            lines.append(f"{source.uri}: {source.stored_zeros:,} zeros are stored as values; they count as absent")
        lines.extend(f"{source.uri}: warning: {warning}" for warning in source.warnings)
    lines.extend(f"{failed.uri}: left out: {failed.error}" for failed in manifest.failed)
    tokens = sum(part.counts["tokens"] for part in manifest.parts)
    truncated = sum(part.counts["truncated"] for part in manifest.parts)
    lines.append(
        f"{manifest.rows:,} cells, {tokens:,} tokens ({tokens / max(manifest.rows, 1):,.0f} a cell), "
        f"{truncated:,} cells cut to {manifest.encoding.input_size:,} tokens, {len(manifest.parts):,} shards"
    )
    return "\n".join(lines)
