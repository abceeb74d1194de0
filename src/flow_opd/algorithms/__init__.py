"""Algorithms: each chooses where batches come from and what is minimised, and nothing else."""
