"""What a run depends on, as hashes: a checkpoint or a score belongs to one identity."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow_opd.config.base import Settings
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.locations import hub_id, locate_model
from flow_opd.config.rewards import DeQASettings, GenEvalSettings, PickScoreSettings, RewardSpec
from flow_opd.files import sha256
from flow_opd.types import Prompt

if TYPE_CHECKING:  # it takes peft along
    from flow_opd.adapters.lora import LoraWeights

# Settings that change memory, speed or safety, and no number: they may be lowered after a crash.
HARMLESS = {
    *("checkpoint", "micro_batch_size", "sample_batch_size"),
    *("compute", "embeddings", "base.offline", "run.out", "run.threads"),
}


def training_identity(
    kind: str, config: Settings, fields: Iterable[str], base: BaseModelSettings, parts: Mapping[str, Any]
) -> str:
    """Returns a hash of everything that decides the numbers of a training.

    The output folder, the device, sizes of batches that change memory alone, the checkpoint interval,
    offline mode and where files lie do not change it. A base is known by the names and sizes of its weights
    (hashing gigabytes at every start would be no favour), everything else by its content: a teacher or a
    prompt that was replaced does not go unnoticed at a resume.

    Args:
        kind: of training.
        config: how it trains.
        fields: of `config` that a training of this kind reads.
        base: its base.
        parts: what else decides: JSON values, with digests for contents.
    """
    method = config.model_dump(mode="json", include=set(fields) - HARMLESS)
    return digest({"kind": kind, "method": method, "base": base_identity(base), **parts})[:16]


def digest(values: Mapping[str, Any]) -> str:
    """Returns the hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def base_identity(base: BaseModelSettings) -> dict[str, Any]:
    """Returns what a base is known by: its weights' names and sizes, or its hub id, and how it is used."""
    weights = weights_of(Path(locate_model(base.path, key="base.path")))
    name = {"path": base.path} if hub_id(base.path) is not None and not weights else {"weights": weights}
    return {**base.model_dump(mode="json", exclude={"path", "offline"}), **name}


def weights_of(folder: Path) -> dict[str, int]:
    """Returns name -> size of the weights in a local folder; nothing for a hub id, which has a revision."""
    return {
        str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*.safetensors"))
    }


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Returns the hash of prompts, in their order."""
    return digest({"prompts": [asdict(prompt) for prompt in prompts]})


def part_identity(part: object) -> str:
    """Returns what a part of a training is known by: an adapter's content, or where code stands and says."""
    weights: LoraWeights | None = part if hasattr(part, "factors") else None  # type: ignore[assignment]
    if weights is not None:
        return weights.digest()
    if isinstance(part, str):  # named elsewhere
        return part
    code = part if inspect.isroutine(part) or inspect.isclass(part) else type(part)
    try:
        source = inspect.getsource(code)  # type: ignore[arg-type]
    except (OSError, TypeError):
        source = ""
    name = f"{getattr(code, '__module__', '')}:{getattr(code, '__qualname__', '')}"
    return digest({"name": name, "source": source})


def content(path: Path) -> list[str]:
    """Returns the hashes of a file, or of all files below a folder."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return [sha256(file) for file in files]


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
