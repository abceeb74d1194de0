"""AdamW and a learning rate that is a function of the step alone, so that resuming restores it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter

from flow_opd.config.common import OptimizerSettings


def build_optimizer(parameters: Iterable[Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """Returns AdamW over `parameters`."""
    return torch.optim.AdamW(
        list(parameters),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Returns the rate of 0-based `step`; linear and cosine decay end at 0 after `total_steps`."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.decay == "constant":
        return settings.learning_rate
    progress = min(1.0, (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps))
    if settings.decay == "linear":
        return settings.learning_rate * (1 - progress)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
