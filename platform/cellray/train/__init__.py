"""Training on Ray Train: objectives, the loop, the trainer."""
