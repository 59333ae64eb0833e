"""Counts in, token corpora out: sources, checks, gene ids, medians, tokenization, corpora."""
