"""What fine-tuning learns: labels of cells and genes, and the tasks built on them."""
