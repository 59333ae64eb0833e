"""Tells people what quality control found."""

from cellray.quality_schema import Bounds, DatasetRecord, QualityManifest, QualityRules, QualitySource

MAX_DATASETS = 50
"""Most data sets whose bounds are printed; the manifest has all."""


def report(manifest: QualityManifest) -> str:
    """Tell people how many cells of each source pass, why the others do not, and each data set's bounds."""
    lines = [line for source in manifest.sources for line in _source(source, manifest.rules)]
    lines.extend(_dataset(found, manifest) for found in manifest.datasets[:MAX_DATASETS])
    if (more := len(manifest.datasets) - MAX_DATASETS) > 0:
        lines.append(f"and {more:,} data sets more: manifest.json has their bounds")
    lines.extend(f"{failed.uri}: left out: {failed.error}" for failed in manifest.failed)
    lines.extend(f"warning: {warning}" for warning in manifest.warnings)
    passed = sum(source.passed for source in manifest.sources)
    lines.append(f"{passed:,} of {manifest.rows:,} cells pass ({passed / max(manifest.rows, 1):.1%})")
    return "\n".join(lines)


def _source(source: QualitySource, rules: QualityRules) -> list[str]:
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in source.dropped.items() if n) or "none"
    lines = [f"{source.uri}: {source.passed:,} of {source.cells:,} cells pass; dropped: {dropped}"]
    if source.mito_genes:
        lines.append(f"{source.uri}: {source.mito_genes} mitochondrial genes, told by {source.mito_from}")
    lines.extend(_genes(source, rules))
    lines.extend(
        f"{source.uri}: doublets of {found.dataset!r}: {found.scored:,} cells scored, threshold {found.threshold:.3f}"
        for found in source.doublets
        if found.threshold is not None
    )
    lines.extend(f"{source.uri}: warning: {warning}" for warning in source.warnings)
    return lines


def _genes(source: QualitySource, rules: QualityRules) -> list[str]:
    """Tell among which genes the detected ones were counted."""
    if source.counted_genes is None:
        return []
    types = f" ({', '.join(rules.gene_types)})" if rules.gene_types else ""
    where = {"the vocabulary": rules.vocabulary_digest, f"the gene table{types}": rules.gene_table_digest}
    named = " and ".join(name for name, digest in where.items() if digest is not None)
    told = f", from {source.genes.ids_from}" if source.genes is not None else ""
    return [f"{source.uri}: detected genes counted among {source.counted_genes:,} genes of {named}{told}"]


def _dataset(found: DatasetRecord, manifest: QualityManifest) -> str:
    mito = f"mitochondrial {manifest.rules.mito}"
    bounds = [
        _bounds("total count", found.n_counts, ",.0f"),
        _bounds(mito, found.mito, ".4f" if manifest.rules.mito == "fraction" else ",.0f"),
    ]
    return (
        f"data set {found.name!r}: {found.passed:,} of {found.cells:,} cells pass; at least {manifest.rules.min_genes} "
        f"genes; {'; '.join(bounds)}"
    )


def _bounds(what: str, bounds: Bounds | None, digits: str) -> str:
    """Render mean, spread and bounds; what cannot be below 0 is not said to be bounded there."""
    if bounds is None:
        return f"{what} not bounded"
    low = f"{bounds.low:{digits}} to " if bounds.low > 0 else "at most "
    return f"{what} {low}{bounds.high:{digits}} (mean {bounds.mean:{digits}}, sd {bounds.sd:{digits}})"
