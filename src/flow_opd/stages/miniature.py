"""Builds all of the miniature from seeds and gathers what is shipped, with a manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from flow_opd.config.miniature import MiniatureSettings
from flow_opd.files import atomic_folder, sha256, write_json
from flow_opd.stages.base_model import build_autoencoder, build_base
from flow_opd.stages.reward_models import build_preference, build_quality
from flow_opd.stages.training import open_run

BUILDERS = {
    "vae": build_autoencoder,
    "base": build_base,
    "deqa": build_quality,
    "pickscore": build_preference,
}
SHIPPED = {"base": "base", "deqa": "rewards/deqa", "pickscore": "rewards/pickscore"}  # part -> asset


def run(settings: MiniatureSettings, *, resume: bool) -> Path:
    """Builds the chosen parts and returns the run folder; finished parts are kept.

    `assets/` in the run folder has the layout of the package's own assets.
    """
    folder = open_run(settings, settings.run, resume=True)
    for part in settings.parts:
        if not resume:
            shutil.rmtree(folder / part, ignore_errors=True)
        model = BUILDERS[part](settings)
        if part in SHIPPED:
            with atomic_folder(folder / "assets" / SHIPPED[part]) as staging:
                shutil.copytree(model, staging, dirs_exist_ok=True)
    write_manifest(folder / "assets", {part: folder / part for part in settings.parts}, settings)
    return folder


def write_manifest(assets: Path, parts: dict[str, Path], settings: MiniatureSettings) -> None:
    """Writes manifest.json beside the assets: settings, cost of each part, hash of each file."""
    write_json(
        assets / "manifest.json",
        {
            "settings": settings.model_dump(mode="json", exclude={"run": {"out", "threads"}}),
            "parts": {
                name: json.loads((folder / "summary.json").read_text()) for name, folder in parts.items()
            },
            "sha256": {
                str(file.relative_to(assets)): sha256(file) for file in sorted(assets.rglob("*.safetensors"))
            },
        },
    )
