"""Exponential moving average of trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from flow_opd.config.common import EMASettings


class EMA:
    """The average of named parameters; it starts at their current values."""

    def __init__(self, parameters: Mapping[str, Parameter], settings: EMASettings) -> None:
        """Copies the present values; .9 every 8 steps is the papers' setting."""
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
