"""The one training loop, its checkpoints, moving averages, seeds and watchers."""
