"""AdamW, its learning rate schedule, and the moving average (EMA) of what it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from flow_opd.config.common import EMASettings, OptimizerSettings
from flow_opd.errors import ConfigError


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
            "moments of 8 bits without the package that keeps them",
            value=state_bits,
            allowed="32, or 8 where bitsandbytes is installed",
            fix="pip install 'flow-opd[8bit]', or set optimizer.state_bits to 32",
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


class EMA:
    """The average of named parameters; it starts at their current values."""

    def __init__(self, parameters: Mapping[str, Parameter], settings: EMASettings) -> None:
        """Copies the present values."""
        self.parameters = parameters
        self.settings = settings
        self.average = {name: value.detach().clone().float() for name, value in parameters.items()}

    def update(self, step: int, *, last: bool = False) -> None:
        """Blends in the weights after 1-based `step`; young averages forget their start sooner.

        The `last` step of a training counts whatever its number: no update is lost to the average.
        """
        if step % self.settings.every and not last:
            return
        seen = -(-step // self.settings.every)
        decay = min(self.settings.decay, (1 + seen) / (10 + seen))
        with torch.no_grad():
            for name, value in self.parameters.items():
                self.average[name].lerp_(value.float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average into the parameters inside the context, and the weights back after it."""
        kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(kept)

    def _write(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(values[name])
