"""Judge the cells of files of raw counts: totals, mitochondrial content, detected genes, doublets, malignancy."""

import re

from cellray import storage
from cellray.data.quality.plan import QualityConfig
from cellray.data.quality.report import report
from cellray.data.quality.run import quality_control
from cellray.data.quality.table import QualityTable
from cellray.plots import quality_png
from jobs._run import run_job

MAX_PLOTS = 20
"""Most data sets that are drawn, the largest first."""
DRAWN_CELLS = 50_000
"""Most cells of a data set that are drawn."""


def main(config: QualityConfig) -> str:
    """Judge, report, and draw if asked to."""
    manifest = quality_control(config)
    made = [report(manifest)]
    if config.plots is not None:
        made.append(draw(QualityTable.open(config.output), config.plots))
    made.append(f"{config.output}: quality control, digest {manifest.digest[:12]}")
    return "\n".join(made)


def draw(table: QualityTable, folder: str) -> str:
    """Draw the largest data sets, a picture each."""
    datasets = sorted(table.manifest.datasets, key=lambda found: -found.cells)
    chosen = {found.name: found for found in datasets[:MAX_PLOTS]}
    samples = table.samples({name: found.cells for name, found in chosen.items()}, DRAWN_CELLS)
    for number, (name, found) in enumerate(chosen.items(), start=1):
        file = re.sub(r"[^\w.-]+", "_", name.rsplit("/", 1)[-1])[:60]
        with storage.atomic_file(storage.join(storage.absolute(folder), f"{number:02d}_{file}.png")) as path:
            quality_png(samples[name], found, table.manifest.rules, path)
    left = len(datasets) - len(chosen)
    drawn = f"{folder}: pictures of {len(chosen)} data set{'s' * (len(chosen) != 1)}"
    return drawn + (f"; {left:,} smaller ones not drawn" if left else "")


if __name__ == "__main__":
    run_job("quality_control", QualityConfig, main)
