"""Geneformer's own classes: `from cellray.compat.geneformer import TranscriptomeTokenizer, EmbExtractor, ...`."""

from cellray.compat.geneformer.embeddings import EmbExtractor
from cellray.compat.geneformer.perturber import InSilicoPerturber
from cellray.compat.geneformer.stats import InSilicoPerturberStats
from cellray.compat.geneformer.tokenizer import TranscriptomeTokenizer

__all__ = ["EmbExtractor", "InSilicoPerturber", "InSilicoPerturberStats", "TranscriptomeTokenizer"]
