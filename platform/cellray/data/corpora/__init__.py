"""Token corpora: opened, concatenated, split, counted, exported and iterated."""
