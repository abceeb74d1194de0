"""Checkpoints: everything that a training needs to go on exactly where it stood."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
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

SHOWN = 5  # differences that a refusal names


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

    def save(self, snapshot: Snapshot, *, identity: str, basis: Mapping[str, Any] | None = None) -> Path:
        """Writes a checkpoint of a training called `identity` and forgets old ones.

        Args:
            snapshot: the tensors.
            identity: hash of all that a training which goes on from here must agree with.
            basis: JSON values that it is the hash of, for the message where another one is refused.
        """
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
            state = {
                "identity": identity,
                "basis": dict(basis or {}),
                "progress": vars(snapshot.progress),
                "sha256": hashes,
            }
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

    def load(self, *, identity: str, basis: Mapping[str, Any] | None = None) -> Snapshot | None:
        """Returns the newest checkpoint, or None where there is none.

        Args:
            identity: of the training that goes on.
            basis: JSON values that it is the hash of.

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
            found, before = state["identity"], state["basis"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as damage:
            raise CheckpointError(
                f"the checkpoint is damaged ({damage})",
                value=str(newest),
                allowed="a checkpoint whose files have the hashes in its state.json",
                fix="delete this folder to go on from the one before it, or start again with --fresh",
            ) from damage
        if found != identity:
            changed = list(differences(before, basis or {}))
            more = [f"and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
            raise CheckpointError(
                "the checkpoint belongs to another training",
                value=f"{newest} of {found}",
                allowed=f"checkpoints of {identity}",
                fix="restore what differs, take another folder, or start again with --fresh (resume=False). "
                f"Differs: {'; '.join([*changed[:SHOWN], *more]) or 'unknown'}",
            )
        return snapshot

    def _numbered(self) -> list[Path]:
        return sorted(self.folder.glob("round-*")) if self.folder.exists() else []


def differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Yields "key: value, now value" where JSON values differ; hashes are said to differ, and not shown."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif before != now:
        shown = "other content" if {*map(_is_hash, (before, now))} == {True} else f"{before}, now {now}"
        yield f"{key}: {shown}"


def _is_hash(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_hash, value))
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


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
