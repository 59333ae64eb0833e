"""Figures of predictions: classification, calibration, regression, genes, means over folds. NumPy and scikit-learn."""
