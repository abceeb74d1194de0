"""Keeps the batch that broke a training, for a look."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from flow_opd.files import write_bytes


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
