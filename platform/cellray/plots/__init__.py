"""Pictures of results, as PNG files, through scanpy and matplotlib.

They are given plain arrays and tables and know nothing of who made them.
"""

from cellray.plots.attention import attention_heads_png, attention_matrix_png, attention_pairs_png
from cellray.plots.cells import length_histogram_png, umap_png
from cellray.plots.classes import confusion_png, support_png
from cellray.plots.curves import calibration_png, precision_recall_png, roc_png
from cellray.plots.heatmap import heatmap_png
from cellray.plots.numbers import regression_png
from cellray.plots.perturbation import gene_effects_png, pairs_png, ranked_shifts_png, volcano_png
from cellray.plots.quality import quality_png
from cellray.plots.search import history_png, importance_png, pareto_png
from cellray.plots.training import training_png

__all__ = [
    "attention_heads_png",
    "attention_matrix_png",
    "attention_pairs_png",
    "calibration_png",
    "confusion_png",
    "gene_effects_png",
    "heatmap_png",
    "history_png",
    "importance_png",
    "length_histogram_png",
    "pairs_png",
    "pareto_png",
    "precision_recall_png",
    "quality_png",
    "ranked_shifts_png",
    "regression_png",
    "roc_png",
    "support_png",
    "training_png",
    "umap_png",
    "volcano_png",
]
