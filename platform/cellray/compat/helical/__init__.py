"""helical's Geneformer: `from cellray.compat.helical import Geneformer, GeneformerConfig`."""

from cellray.compat.helical.config import GeneformerConfig
from cellray.compat.helical.model import Geneformer

__all__ = ["Geneformer", "GeneformerConfig"]
