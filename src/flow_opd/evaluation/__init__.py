"""Scores with intervals, paired comparisons and the protocol card."""
