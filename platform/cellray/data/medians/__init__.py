"""Nonzero medians of a corpus of counts, and the vocabulary made of them."""
