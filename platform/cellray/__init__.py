"""cellray: Geneformer-type single-cell foundation models at cluster scale, on Ray.

Importing this package loads nothing heavy; every submodule is imported where it is used.
"""

__version__ = "0.1.0"
