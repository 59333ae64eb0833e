"""Geneformer's own classes: `from cellray.compat.geneformer import TranscriptomeTokenizer, EmbExtractor, ...`."""

from cellray.compat.geneformer.classifier import Classifier
from cellray.compat.geneformer.embeddings import EmbExtractor
from cellray.compat.geneformer.perturber import InSilicoPerturber
from cellray.compat.geneformer.stats import InSilicoPerturberStats
from cellray.compat.geneformer.tokenizer import TranscriptomeTokenizer

__all__ = ["Classifier", "EmbExtractor", "InSilicoPerturber", "InSilicoPerturberStats", "TranscriptomeTokenizer"]
