"""What a merge has kept: energies by module and layer, and how much of each input is in the result."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.lowrank import LowRank


@dataclass(frozen=True)
class ModuleReport:
    """What cutting to the rank did to one module; energy = squared Frobenius norm of a delta."""

    energy: float  # of the method's delta before the cut
    kept_energy: float  # share in [0, 1]; 1 if there was none to lose


@dataclass(frozen=True)
class TeacherReport:
    """How much of one teacher's delta, over all modules, is in the merge."""

    cosine: float | None  # between its delta and the merged one; None if either is zero
    norm_ratio: float | None  # |merged delta| / |its delta|; None if its delta is zero
    missing: tuple[str, ...] = ()  # modules of the merge that it does not change; they count as zero


@dataclass(frozen=True)
class MergeReport:
    """What a merge did."""

    method: str
    rank: int
    alpha: float
    weights: tuple[float, ...]  # K
    kept_energy: float  # over all modules, share in [0, 1]
    modules: Mapping[str, ModuleReport]
    teachers: tuple[TeacherReport, ...]  # K, in the order given
    notes: tuple[str, ...]

    @property
    def lost_energy(self) -> float:
        """The share of the energy that the cut to the rank lost, in [0, 1]."""
        return 1.0 - self.kept_energy

    @property
    def layers(self) -> dict[str, ModuleReport]:
        """What the cut did to each layer of the transformer, such as "transformer_blocks.3", in order."""
        grouped: dict[str, list[ModuleReport]] = {}
        for module, report in self.modules.items():
            grouped.setdefault(_layer_of(module), []).append(report)
        ordered = sorted(
            grouped, key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")]
        )
        return {
            name: ModuleReport(sum(each.energy for each in grouped[name]), kept_energy(grouped[name]))
            for name in ordered
        }


def compare(lora: LoraWeights, merged: Mapping[str, LowRank]) -> TeacherReport:
    """Returns cosine and norm ratio of a teacher's delta and the merged one, over all modules together."""
    own = product = other = 0.0
    for module, delta in merged.items():
        other += delta.inner(delta)
        if module in lora.factors:
            part = LowRank.of(lora, module)
            own += part.inner(part)
            product += part.inner(delta)
    missing = tuple(sorted(merged.keys() - lora.factors.keys()))
    if own <= 0:
        return TeacherReport(None, None, missing)
    other = max(other, 0.0)
    cosine = product / math.sqrt(own * other) if other > 0 else None
    return TeacherReport(cosine, math.sqrt(other / own), missing)


def _layer_of(module: str) -> str:
    """Returns the name of a module up to its first number, or its first part."""
    parts = module.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: number + 1])


def kept_energy(modules: Collection[ModuleReport]) -> float:
    """Returns the share of the energy of all these modules together that was kept."""
    kept = sum(report.energy * report.kept_energy for report in modules)
    return share(kept, sum(report.energy for report in modules))


def share(part: float, whole: float) -> float:
    """Returns part / whole; 1 where there is nothing, of which nothing was lost."""
    return part / whole if whole > 0 else 1.0
