"""What a run depends on, as hashes: a checkpoint or a score belongs to one identity."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.base import Settings
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.locations import hub_id, locate_model
from flow_opd.config.recorded import HARMLESS
from flow_opd.config.rewards import RewardSettings
from flow_opd.config.versions import code_versions, is_ours
from flow_opd.files import sha256
from flow_opd.method.policy import Policy
from flow_opd.types import Prompt

PLAIN = (str, int, float, bool, type(None), Mapping, list, tuple, partial, torch.Tensor, LoraWeights, Policy)
"""What is known by its content."""


@dataclass(frozen=True)
class Identity:
    """Everything that decides the numbers of a training, as JSON values."""

    values: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The hash of the values, 16 digits."""
        return digest(self.values)[:16]


def training_identity(
    kind: str, config: Settings, fields: Iterable[str], base: BaseModelSettings, parts: Mapping[str, Any]
) -> Identity:
    """Returns everything that decides the numbers of a training.

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
    code = code_versions([config, base])
    return Identity({"kind": kind, **method, "code": code, "base": base_identity(base), **parts})


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


def part_identity(part: object) -> Any:
    """Returns what a part of a training is known by, as JSON values.

    Numbers and words are themselves, tensors and adapters their content. Code is where it stands and how it
    is written, with the values that it has closed over; an object is its class and, by the same rules, what
    it holds, but for objects inside of it that are none of these, which are known by their class alone.
    """
    if isinstance(part, str | int | float | bool | type(None)):
        return part
    if isinstance(part, Mapping):
        return {str(key): part_identity(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [part_identity(value) for value in part]
    if isinstance(part, partial):
        return {"partial": part_identity([part.func, part.args, part.keywords])}
    if isinstance(part, torch.Tensor):
        return hashlib.sha256(
            part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
    if isinstance(part, LoraWeights):
        return part.digest()
    if isinstance(part, Policy):
        return [part_identity(_adapter_of(part)), part.guidance_scale]
    if inspect.isroutine(part) or inspect.isclass(part):
        held = [cell.cell_contents for cell in getattr(part, "__closure__", None) or ()]
        return [_code(part), [_shallow(each) for each in held if each is not part]]
    state = vars(part) if hasattr(part, "__dict__") else {}
    return [_code(type(part)), {key: _shallow(value) for key, value in state.items()}]


def _shallow(part: object) -> Any:
    """Returns what something inside of a part is known by."""
    known = isinstance(part, PLAIN) or inspect.isroutine(part)
    return part_identity(part) if known else _code(type(part))


def _code(code: Any) -> list[str]:
    """Returns where code stands, and how it is written, if that is known."""
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):
        source = ""
    return [f"{getattr(code, '__module__', '')}:{getattr(code, '__qualname__', '')}", source]


def _adapter_of(policy: Policy) -> LoraWeights | None:
    """Returns the adapter of a policy, None for the bare base."""
    bank = policy.adapters
    named = policy.adapter is not None and isinstance(bank, AdapterBank)
    return bank.weights(policy.adapter) if named else None  # type: ignore[union-attr, arg-type]


def content(path: Path) -> list[str]:
    """Returns the hashes of a file, or of all files below a folder."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return [sha256(file) for file in files]


def reward_files(settings: Sequence[RewardSettings]) -> list[Path]:
    """Returns where the rewards' own models are; those of a hub are known by their id alone."""
    named = [(key, name) for each in settings for key, name in each.models.items()]
    paths = [Path(locate_model(name, key=key)) for key, name in named]
    return [path for path in paths if path.exists()]


def rewards_identity(settings: Sequence[RewardSettings], *, but: Collection[str] = ()) -> dict[str, Any]:
    """Returns what scores depend on, as JSON values: settings, models, and code that is not ours.

    Args:
        settings: of the rewards.
        but: settings of ours that change no score; of other people's, those that are not their own.
    """
    ours = {"batch_size", *but}
    return {
        "rewards": [
            each.model_dump(mode="json", exclude=ours if is_ours(each) else {"weight", "tasks"} & ours)
            for each in settings
        ],
        "files": [content(file) for file in reward_files(settings)],
        "code": code_versions(settings),
    }
