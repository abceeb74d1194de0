"""Rewards: one file each; images and prompts to scores with a scale and a validity mask."""
