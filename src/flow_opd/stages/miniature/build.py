"""Builds all of the miniature from seeds and gathers what is shipped, with a manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flow_opd.config.miniature import MiniatureSettings
from flow_opd.files import atomic_folder, sha256, write_json
from flow_opd.layout import ADAPTER, CONFIG, MANIFEST, METRICS, SUMMARY, TRAINING
from flow_opd.runs.training import open_run, record
from flow_opd.stages.miniature.base import build_autoencoder, build_base, build_refined
from flow_opd.stages.miniature.parts import is_finished
from flow_opd.stages.miniature.rewards import build_preference, build_quality

BUILDERS = {
    "vae": build_autoencoder,
    "base": build_base,
    "refine": build_refined,
    "deqa": build_quality,
    "pickscore": build_preference,
}
SHIPPED = {"refine": "base", "deqa": "rewards/deqa", "pickscore": "rewards/pickscore"}  # part -> asset
PICTURES = ("data", "judged")  # drawn once and kept
TRAINED = ("teachers", "baselines")  # folders of GRPO's runs, and of their adapters among the assets


def run(settings: MiniatureSettings, *, resume: bool) -> Path:
    """Builds the chosen parts and returns the run folder; finished parts are kept.

    `assets/` in the run folder has the layout of the package's own assets. Adapters whose runs have finished
    below `teachers/` and `baselines/` are gathered with them; `flow-opd teacher` trains one, from
    asset:configs/teachers/NAME.yaml and asset:configs/grpo-mix.yaml.
    """
    folder = open_run(settings.run)
    if resume:
        for part in BUILDERS:
            is_finished(folder / part, part, settings)  # refuses before anything is written
    record(settings, folder)
    if not resume:
        for part in (*settings.parts, *PICTURES):
            shutil.rmtree(folder / part, ignore_errors=True)
    for part in settings.parts:
        model = BUILDERS[part](settings)
        if part in SHIPPED:
            _gather(model, folder / "assets" / SHIPPED[part])
    trained = {kind: sorted(path.parent for path in (folder / kind).glob(f"*/{ADAPTER}")) for kind in TRAINED}
    for kind, runs in trained.items():
        for one in runs:
            _gather(one / ADAPTER, folder / "assets" / kind / one.name)
    parts = {part: folder / part for part in BUILDERS if is_finished(folder / part, part, settings)}
    write_manifest(folder / "assets", settings, parts, trained)
    return folder


def _gather(source: Path, target: Path) -> None:
    """Copies a finished model, without the paths of this machine that diffusers writes into its configs."""
    with atomic_folder(target) as staging:
        shutil.copytree(source, staging, dirs_exist_ok=True)
        for file in staging.rglob("*.json"):
            content = json.loads(file.read_text())
            if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
                write_json(file, content)


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
