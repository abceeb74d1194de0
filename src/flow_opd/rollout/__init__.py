"""Trajectories: sampling them, and the fused on-policy walk."""
