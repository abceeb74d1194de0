"""What a LoRA looks like before it has weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from flow_opd.config.common import ATTENTION_PROJECTIONS, LoraSettings
from flow_opd.errors import AdapterError

DEFAULT_TARGET_MODULES = ATTENTION_PROJECTIONS
"""The eight projections of SD3's joint attention that Flow-GRPO and Flow-OPD adapt."""


@dataclass(frozen=True)
class LoraForm:
    """Rank, alpha and targets of a LoRA: delta = (alpha / rank) B A on every targeted linear layer."""

    rank: int = 32
    alpha: float = 64.0
    target_modules: tuple[str, ...] = DEFAULT_TARGET_MODULES  # module names or dotted endings of them

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            AdapterError: if rank, alpha or target_modules cannot describe a LoRA.
        """
        if self.rank < 1:
            raise AdapterError(
                "LoRA rank",
                value=self.rank,
                allowed="whole numbers from 1",
                fix="set a rank of 1 or more",
            )
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise AdapterError(
                "LoRA alpha", value=self.alpha, allowed="numbers above 0", fix="set alpha, often 2 x rank"
            )
        if not self.target_modules:
            raise AdapterError(
                "LoRA without target modules",
                value=self.target_modules,
                allowed="one name or more",
                fix="name the linear layers to adapt, e.g. attn.to_q",
            )

    @classmethod
    def of(cls, settings: LoraSettings) -> Self:
        """Returns rank, alpha and targets that a configuration asks for."""
        return cls(settings.rank, settings.alpha, settings.target_modules)

    @property
    def scale(self) -> float:
        """The factor alpha / rank in front of B A."""
        return self.alpha / self.rank

    def targets(self, module: str) -> bool:
        """Returns whether `module` is meant: it is named in full, or by a dotted ending, as PEFT matches."""
        return any(_names(target, module) for target in self.target_modules)

    def unmatched(self, modules: Iterable[str]) -> list[str]:
        """Returns the targets that name none of `modules`."""
        known = list(modules)
        return [target for target in self.target_modules if not any(_names(target, one) for one in known)]


def _names(target: str, module: str) -> bool:
    return module == target or module.endswith("." + target)
