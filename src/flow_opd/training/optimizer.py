"""AdamW and a learning rate that is a function of the step alone, so that resuming restores it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter

from flow_opd.config.common import OptimizerSettings
from flow_opd.errors import ConfigError, explain


def build_optimizer(parameters: Iterable[Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Returns AdamW over `parameters`, with moments of 32 or 8 bits.

    Raises:
        ConfigError: if 8 bits are asked for and bitsandbytes is not installed.
    """
    return _adamw(settings.state_bits)(
        list(parameters),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )


def _adamw(state_bits: int) -> Callable[..., torch.optim.Optimizer]:
    if state_bits == 32:
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as absent:
        raise ConfigError(
            explain(
                "moments of 8 bits without the package that keeps them",
                value=state_bits,
                allowed="32, or 8 where bitsandbytes is installed",
                fix="pip install 'flow-opd[8bit]', or set optimizer.state_bits to 32",
            )
        ) from absent
    return AdamW8bit


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
