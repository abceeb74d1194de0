"""Writes the prompts of the miniature's domains."""

from __future__ import annotations

from pathlib import Path

from flow_opd.config.miniature import MiniaturePromptsSettings
from flow_opd.miniature.prompts import prompts
from flow_opd.prompts.jsonl import write_prompts
from flow_opd.runs.training import open_run, record


def run(settings: MiniaturePromptsSettings) -> Path:
    """Writes train/DOMAIN.jsonl and test/DOMAIN.jsonl and returns their folder."""
    folder = open_run(settings.run)
    record(settings, folder)
    for split, count in (("train", settings.train), ("test", settings.held_out)):
        for domain in settings.domains:
            if count:
                drawn = prompts(domain, split, count, settings.run.seed)
                write_prompts(folder / split / f"{domain}.jsonl", drawn)
    return folder
