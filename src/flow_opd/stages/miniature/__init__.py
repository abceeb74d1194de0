"""Builds the miniature: its parts, its prompts, its manifest."""
