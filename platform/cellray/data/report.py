"""Tells people what became of the sources of a corpus."""

from cellray.schema import CorpusManifest, GeneReport


def _told(genes: GeneReport) -> str:
    """Name the ways in which columns were told, where they needed any."""
    ways = {"with a version": genes.versioned, "retired ids": genes.retired, "by symbol": genes.by_symbol}
    found = [f"{n:,} {way}" for way, n in ways.items() if n]
    return f"; {', '.join(found)}" if found else ""


def report(manifest: CorpusManifest) -> str:
    """Tell people what was mapped, kept and dropped."""
    lines = []
    for source in manifest.sources:
        genes = source.genes
        dropped = ", ".join(f"{n:,} dropped ({reason})" for reason, n in source.dropped.items() if n) or "none dropped"
        lines.append(
            f"{source.uri}: genes from {genes.ids_from}: {genes.known:,} known of {genes.columns:,} columns "
            f"({genes.summed:,} summed into others, {genes.without_median:,} without median, "
            f"{genes.unknown:,} unknown{_told(genes)}); cells: {source.kept:,} kept of {source.cells:,}, {dropped}"
        )
        if source.stored_zeros:
            lines.append(f"{source.uri}: {source.stored_zeros:,} zeros are stored as values; they count as absent")
        if source.duplicate_entries:
            found = f"{source.duplicate_entries:,} values stand twice in a cell; they were added"
            lines.append(f"{source.uri}: {found}")
        lines.extend(
            f"{source.uri}: obs column {name!r}: {n:,} cells without a value" for name, n in source.missing.items()
        )
        lines.extend(f"{source.uri}: warning: {warning}" for warning in source.warnings)
    lines.extend(f"left out: {failed.error}" for failed in manifest.failed)
    names = manifest.repeated_names
    if names and names.within:
        lines.append(f"{names.within:,} cells bear the name of another of their file; rows tell them apart")
    if names and names.across:
        lines.append(f"{names.across:,} cell names stand in several files; their sources tell them apart")
    tokens = sum(part.counts["tokens"] for part in manifest.parts)
    truncated = sum(part.counts["truncated"] for part in manifest.parts)
    lines.append(
        f"{manifest.rows:,} cells, {tokens:,} tokens ({tokens / max(manifest.rows, 1):,.0f} a cell), "
        f"{truncated:,} cells cut to {manifest.encoding.input_size:,} tokens, {len(manifest.parts):,} shards"
    )
    return "\n".join(lines)
