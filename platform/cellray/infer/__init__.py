"""Inference on Ray Data: embeddings and what they are worth."""
