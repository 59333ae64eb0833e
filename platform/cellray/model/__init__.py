"""The BERT encoder of Geneformer-type models: presets, loading, hidden states, pooling, checkpoints. No Ray."""
