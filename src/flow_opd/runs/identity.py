"""What a run depends on, as hashes: a checkpoint or a score belongs to one identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_opd.config import common
from flow_opd.config.base import Settings
from flow_opd.config.locations import locate, locate_model
from flow_opd.config.rewards import DeQASettings, GenEvalSettings, PickScoreSettings, RewardSpec
from flow_opd.files import sha256


def fingerprint(settings: Settings, base: common.BaseModelSettings, files: Sequence[Path]) -> str:
    """Returns a hash of everything that decides the numbers of a training.

    The output folder, the device, sizes of batches that change memory alone (they may be lowered after a
    crash), the checkpoint interval, offline mode and the checks of the prompts do not change it.
    A base is known by the names and sizes of its weights (hashing gigabytes at every start would be no
    favour), everything else by its content: a teacher or a prompts file that was replaced does not go
    unnoticed at a resume.

    Args:
        settings: all settings of the stage.
        base: its base.
        files: prompts files, and folders of adapters and reward models.
    """
    relevant: dict[str, Any] = settings.model_dump(mode="json")
    for key in ("checkpoint", "compute", "embeddings", "micro_batch_size", "sample_batch_size"):
        relevant.pop(key, None)
    for key in ("out", "threads"):
        relevant.get("run", {}).pop(key, None)
    relevant["base"].pop("offline", None)
    for file in relevant.get("prompts", []):
        for key in common.PROMPT_CHECKS:
            file.pop(key)
    for reward in relevant.get("rewards", []):
        reward.pop("batch_size", None)
    return hashed(relevant, base, files)


def hashed(relevant: Mapping[str, Any], base: common.BaseModelSettings, files: Sequence[Path]) -> str:
    """Returns a hash of values, of the names and sizes of a base's weights, and of the content of files."""
    weights = _weights(Path(locate_model(base.path, key="base.path")))
    whole = {**relevant, "base weights": weights, "files": [content(file) for file in files]}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def _weights(folder: Path) -> dict[str, int]:
    """Returns name -> size of the weights in a local folder; nothing for a hub id, which has a revision."""
    return {
        str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*.safetensors"))
    }


def content(path: Path) -> list[str]:
    """Returns the hashes of a file, or of all files below a folder."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return [sha256(file) for file in files]


def prompt_files(files: Sequence[common.PromptsSettings]) -> list[Path]:
    """Returns where the prompts are."""
    return [locate(file.path, key="prompts.path") for file in files]


def reward_files(specs: Sequence[RewardSpec]) -> list[Path]:
    """Returns where the rewards' own files are; models of a hub are known by their id alone."""
    composition = [spec for spec in specs if isinstance(spec, GenEvalSettings)]
    named = {
        "palette": [spec.palette for spec in composition if spec.palette is not None],
        "detector": [spec.detector for spec in composition if spec.detector is not None],
        "colors": [spec.colors for spec in composition if spec.colors is not None],
        "path": [spec.path for spec in specs if isinstance(spec, DeQASettings | PickScoreSettings)],
    }
    paths = [Path(locate_model(name, key=key)) for key, names in named.items() for name in names]
    return [path for path in paths if path.exists()]
