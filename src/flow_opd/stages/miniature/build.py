"""Builds all of the miniature from seeds and gathers what is shipped, with a manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from flow_opd.config.miniature import MiniatureSettings
from flow_opd.files import atomic_folder, write_json
from flow_opd.layout import ADAPTER
from flow_opd.runs.training import open_run, record
from flow_opd.stages.miniature.base import build_autoencoder, build_base, build_refined
from flow_opd.stages.miniature.manifest import write_manifest
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
