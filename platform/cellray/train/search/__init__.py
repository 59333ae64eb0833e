"""Hyperparameter search: a space of training options, trials on Ray Tune, a study that outlives the process."""
