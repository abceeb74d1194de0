"""The manifest of the miniature: its seeds, what it cost, how it learnt, and the hashes of its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flow_opd.config.miniature import MiniatureSettings
from flow_opd.files import sha256, write_json
from flow_opd.layout import CONFIG, MANIFEST, METRICS, SUMMARY, TRAINING

POINTS = 40  # of a curve; each is the mean over as many log lines as fall to it
DIGITS = 4  # significant ones of a point


def write_manifest(
    assets: Path,
    settings: MiniatureSettings,
    parts: Mapping[str, Path],
    trained: Mapping[str, Sequence[Path]],
) -> None:
    """Writes manifest.json beside the assets.

    Args:
        assets: folder of what is shipped; every safetensors file below it is hashed.
        settings: of the build.
        parts: name -> run folder of each finished part.
        trained: "teachers" and "baselines" -> run folder of each finished one.
    """
    hashed = {str(file.relative_to(assets)): sha256(file) for file in sorted(assets.rglob("*.safetensors"))}
    write_json(
        assets / MANIFEST,
        {
            "settings": settings.model_dump(mode="json", exclude={"run": {"out", "threads"}, "parts": True}),
            "parts": {name: _part(folder, name, settings) for name, folder in parts.items()},
            **{kind: {run.name: _trained(run, kind) for run in runs} for kind, runs in trained.items()},
            "sha256": hashed,
        },
    )


def _part(folder: Path, name: str, settings: MiniatureSettings) -> dict[str, Any]:
    summary = json.loads((folder / SUMMARY).read_text())
    batch: int = settings.model_dump()[name]["batch_size"]
    return {**summary, "samples": summary["steps"] * batch, "curves": _curves(folder, ("loss",))}


def _trained(folder: Path, kind: str) -> dict[str, Any]:
    config = f"teachers/{folder.name}" if kind == "teachers" else folder.name
    settings = yaml.safe_load((folder / CONFIG).read_text())
    images = settings["group_size"] * settings["groups_per_round"] * settings["run"]["rounds"]
    return {
        "command": f"flow-opd teacher asset:configs/{config}.yaml",
        "seed": settings["run"]["seed"],
        **json.loads((folder / TRAINING).read_text()),
        "samples": images,
        "curves": _curves(folder, ("reward",)),
    }


def _curves(folder: Path, keys: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
    """Returns key -> [(last step, mean), ...] of a metrics.jsonl, thinned to at most `POINTS` points."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    bins = [rows.tolist() for rows in np.array_split(np.arange(len(lines)), POINTS) if len(rows)]
    return {
        key: [
            (lines[rows[-1]]["step"], float(f"{np.mean([lines[row][key] for row in rows]):.{DIGITS}g}"))
            for rows in bins
        ]
        for key in keys
    }
