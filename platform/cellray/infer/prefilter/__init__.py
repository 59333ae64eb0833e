"""Genome-wide screens that evaluate few perturbations exactly: cheap estimates, a choice, a sample that corrects."""
