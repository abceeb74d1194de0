"""Stages: settings become objects, objects work, and a run folder is left behind."""
