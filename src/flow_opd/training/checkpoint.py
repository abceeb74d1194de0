"""Checkpoints: everything that a training needs to go on exactly where it stood."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import Parameter

from flow_opd.errors import CheckpointError
from flow_opd.files import atomic_folder, sha256, write_bytes, write_json


@dataclass
class Progress:
    """Where a training stands; all randomness is derived from the round."""

    round: int = 0  # rounds finished
    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # wall time so far, over all resumes


@dataclass(frozen=True)
class Snapshot:
    """The tensors of a checkpoint, by kind."""

    progress: Progress
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    average: Mapping[str, Tensor]


class CheckpointFolder:
    """Numbered checkpoints below one folder: written atomically, verified when read."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Names the folder; `keep` is how many of the newest checkpoints stay."""
        self.folder = folder
        self.keep = keep

    def save(self, snapshot: Snapshot, *, identity: str) -> Path:
        """Writes a checkpoint of a training called `identity` and forgets old ones."""
        target = self.folder / f"round-{snapshot.progress.round:07d}"
        with atomic_folder(target) as staging:
            for kind in ("parameters", "optimizer", "average"):
                # Copies: moments of eight bits share one table of values, which safetensors refuses to write.
                tensors = {
                    name: value.detach().cpu().contiguous().clone()
                    for name, value in getattr(snapshot, kind).items()
                }
                write_bytes(staging / f"{kind}.safetensors", save(tensors))
            hashes = {file.name: sha256(file) for file in sorted(staging.iterdir())}
            state = {"identity": identity, "progress": vars(snapshot.progress), "sha256": hashes}
            write_json(staging / "state.json", {**state, "seal": _seal(state)})
        for old in self._numbered()[: -self.keep]:
            shutil.rmtree(old)
        for leftover in self.folder.glob(".tmp-*"):  # what a kill in the middle of a write has left
            shutil.rmtree(leftover)
        return target

    def latest(self) -> Path | None:
        """Returns the newest checkpoint, or None."""
        numbered = self._numbered()
        return numbered[-1] if numbered else None

    def load(self, *, identity: str) -> Snapshot | None:
        """Returns the newest checkpoint, or None where there is none.

        Raises:
            CheckpointError: if a file is damaged or missing, or the checkpoint belongs to other settings.
        """
        newest = self.latest()
        if newest is None:
            return None
        try:
            state = json.loads((newest / "state.json").read_text())
            if state.pop("seal") != _seal(state):
                raise ValueError("state.json does not have the content that was written")
            for name, digest in state["sha256"].items():
                if sha256(newest / name) != digest:
                    raise ValueError(f"{name} does not have the hash that was written")
            kinds = {
                kind: load_file(newest / f"{kind}.safetensors")
                for kind in ("parameters", "optimizer", "average")
            }
            snapshot = Snapshot(Progress(**state["progress"]), **kinds)
            found = state["identity"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as damage:
            raise CheckpointError(
                f"the checkpoint is damaged ({damage})",
                value=str(newest),
                allowed="a checkpoint whose files have the hashes in its state.json",
                fix="delete this folder to go on from the one before it, or start again with --fresh",
            ) from damage
        if found != identity:
            raise CheckpointError(
                "the checkpoint was written under other settings",
                value=f"{newest} of {found}",
                allowed=f"checkpoints of {identity}",
                fix="restore the settings, choose another --out, or start again with --fresh",
            )
        return snapshot

    def _numbered(self) -> list[Path]:
        return sorted(self.folder.glob("round-*")) if self.folder.exists() else []


def _seal(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter]
) -> dict[str, Tensor]:
    """Returns the optimizer's state as flat tensors named "parameter-name:key"."""
    return {
        f"{name}:{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Puts the tensors of `optimizer_tensors` back, in place of what there is."""
    optimizer.state.clear()
    for flat, value in tensors.items():
        name, key = flat.rsplit(":", 1)
        parameter = parameters[name]
        optimizer.state[parameter][key] = _as_kept(value, parameter)


def _as_kept(value: Tensor, parameter: Parameter) -> Tensor | int:
    """Returns a state as its optimizer keeps it: AdamW's step is a CPU tensor, that of 8 bits an int."""
    if value.ndim > 0:
        return value.to(parameter.device)
    return value.clone() if value.is_floating_point() else int(value)


def save_batch(batch: Any, target: Path) -> Path:
    """Writes every tensor of a batch dataclass (nested names joined by dots) and returns the file."""
    write_bytes(target, save(dict(_tensors(batch, ""))))
    return target


def _tensors(value: Any, prefix: str) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(prefix, value.detach().cpu().contiguous().clone())]
    if is_dataclass(value):
        return [
            pair
            for part in fields(value)
            for pair in _tensors(getattr(value, part.name), f"{prefix}.{part.name}".lstrip("."))
        ]
    return []
