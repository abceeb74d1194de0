"""Merging LoRAs: one LoRA out of several, and a report of what was kept of each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.lowrank import LowRank, nearest_to
from flow_opd.adapters.merge_methods import MergeMethod
from flow_opd.adapters.merge_report import MergeReport, ModuleReport, compare, kept_energy, share
from flow_opd.config.common import LoraSettings
from flow_opd.errors import AdapterError


def merge(
    loras: Sequence[LoraWeights],
    method: MergeMethod,
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> tuple[LoraWeights, MergeReport]:
    """Returns one LoRA made of several, and the report.

    Adapters of different rank and alpha are merged by their deltas (alpha / rank) B A; the report says so. A
    module that one of them does not change has a delta of zero there. Alpha decides how a later training
    moves the delta, and leaves it as it is (`_to_lora`).

    Args:
        loras: K LoRAs whose common modules have the same shapes.
        method: how to merge them, and to which rank.
        weights: w_k, used as they are; None = 1 / K each.
        seed: of methods that draw.

    Raises:
        AdapterError: if the LoRAs do not fit each other, or the weights do not fit the method.
    """
    shapes = _shapes(loras)
    shares = _shares(method, weights, len(loras))
    merged, modules = _combine(loras, shapes, shares, method, seed)
    result_rank = max(delta.rank for delta in merged.values())
    alpha = 2.0 * result_rank if method.alpha is None else method.alpha
    if not (math.isfinite(alpha) and alpha > 0):
        fix = "leave it out for 2 x rank"
        raise AdapterError("LoRA alpha", value=alpha, allowed="finite numbers above 0", fix=fix)
    settings = LoraSettings(rank=result_rank, alpha=alpha, target_modules=_targets(loras))
    result = _to_lora(merged, settings, balanced=method.rank is not None)
    report = MergeReport(
        method=method.name,
        rank=result.rank,
        alpha=result.alpha,
        weights=shares,
        kept_energy=kept_energy(modules.values()),
        modules=modules,
        teachers=tuple(compare(lora, merged) for lora in loras),
        notes=_notes(loras, method.rank, result_rank),
    )
    return result, report


def _combine(
    loras: Sequence[LoraWeights],
    shapes: Mapping[str, tuple[int, int]],
    shares: Sequence[float],
    method: MergeMethod,
    seed: int,
) -> tuple[dict[str, LowRank], dict[str, ModuleReport]]:
    """Returns each module's merged delta, cut to the rank if there is one, and its report."""
    merged: dict[str, LowRank] = {}
    modules: dict[str, ModuleReport] = {}
    for module, shape in sorted(shapes.items()):
        whole = method.combine(_parts(loras, module), shares, _generator(seed, module))
        _check(whole, shape, method, module)
        if isinstance(whole, LowRank) and method.rank is None:
            merged[module], kept, lost = whole, whole.inner(whole), 0.0
        else:
            assert method.rank is not None
            cut = (
                whole.truncated(method.rank) if isinstance(whole, LowRank) else nearest_to(whole, method.rank)
            )
            merged[module], kept, lost = cut
        modules[module] = ModuleReport(kept + lost, share(kept, kept + lost))
    return merged, modules


def _check(whole: LowRank | Tensor, shape: tuple[int, int], method: MergeMethod, module: str) -> None:
    """Refuses what a method made of a module, if it is no delta of it.

    Raises:
        AdapterError: if it has another shape, is not finite, or is dense where no rank is known.
    """
    in_factors = isinstance(whole, LowRank)
    factors = (whole.up, whole.down) if isinstance(whole, LowRank) else (whole,)
    found = (factors[0].shape[0], factors[-1].shape[-1])
    if found != shape or not all(bool(torch.isfinite(each).all()) for each in factors):
        raise AdapterError(
            f"merge method {method.name!r} returned no delta of {module}",
            value=found,
            allowed=f"finite numbers of the shape {shape}",
            fix="correct the method",
        )
    if method.rank is None and not in_factors:
        raise AdapterError(
            f"rank of merge method {method.name!r}, whose result is dense",
            value=None,
            allowed="1 and above",
            fix="say which rank to keep",
        )


def _shapes(loras: Sequence[LoraWeights]) -> dict[str, tuple[int, int]]:
    """Returns each module that any of the LoRAs changes with its shape, (out, in).

    Raises:
        AdapterError: if there is no LoRA, or two give one module different shapes.
    """
    if not loras:
        raise AdapterError("nothing to merge", value=0, allowed="one LoRA or more", fix="name the adapters")
    shapes: dict[str, tuple[int, int]] = {}
    for index, lora in enumerate(loras, start=1):
        for module, (down, up) in lora.factors.items():
            shape = (up.shape[0], down.shape[1])
            if shapes.setdefault(module, shape) != shape:
                raise AdapterError(
                    f"LoRA number {index} has another shape of {module} than one before it",
                    value=shape,
                    allowed=str(shapes[module]),
                    fix="merge adapters of one base",
                )
    return shapes


def _parts(loras: Sequence[LoraWeights], module: str) -> list[LowRank]:
    """Returns the K deltas of a module, zero of the LoRA's own rank where it does not change the module."""
    known = next(lora.factors[module] for lora in loras if module in lora.factors)
    return [
        LowRank.of(lora, module)
        if module in lora.factors
        else LowRank(
            torch.zeros(known[1].shape[0], lora.rank, dtype=torch.float64),
            torch.zeros(lora.rank, known[0].shape[1], dtype=torch.float64),
        )
        for lora in loras
    ]


def _targets(loras: Sequence[LoraWeights]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(target for lora in loras for target in lora.target_modules))


def _shares(method: MergeMethod, weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Returns the K weights of a merge.

    Raises:
        AdapterError: if the method takes none, needs some, or they are not K finite numbers, or all 0.
    """
    if weights is None:
        if method.weights == "given":
            raise AdapterError(
                f"merge method {method.name!r} without weights",
                value=None,
                allowed="a list",
                fix="give weights",
            )
        return (1.0 / count,) * count
    if method.weights == "equal":
        raise AdapterError(
            f"weights for merge method {method.name!r}",
            value=list(weights),
            allowed="none, all count the same",
            fix="leave the weights out, or use method weighted or svd",
        )
    if len(weights) != count or not all(map(math.isfinite, weights)) or not any(weights):
        raise AdapterError(
            "merge weights",
            value=list(weights),
            allowed=f"{count} finite numbers, not all 0",
            fix="give one weight for each adapter",
        )
    return tuple(float(weight) for weight in weights)


def _generator(seed: int, module: str) -> torch.Generator:
    """Returns a generator of its own for each module, whatever the order of the modules."""
    digest = hashlib.sha256(f"{seed}/{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _to_lora(merged: Mapping[str, LowRank], settings: LoraSettings, *, balanced: bool) -> LoraWeights:
    """Returns the deltas as a LoRA; a module of lower rank than the others is padded with zeros.

    AdamW moves every entry of both factors by about the learning rate, so the delta moves by
    lr alpha / rank (S_B A + B S_A), S the signs of the steps. Balanced factors have the size
    1 / sqrt(alpha / rank), so the delta moves by lr sqrt(alpha / rank).

    Args:
        merged: module -> delta.
        settings: rank, alpha and targets of the result.
        balanced: divides both factors by the root of alpha / rank, which keeps factors of equal size equal;
            else B alone by all of it, which keeps A.
    """
    scale_down = math.sqrt(settings.scale) if balanced else 1.0
    factors = {}
    for module, delta in merged.items():
        up = torch.zeros(delta.up.shape[0], settings.rank)
        down = torch.zeros(settings.rank, delta.down.shape[1])
        up[:, : delta.rank] = delta.up / (settings.scale / scale_down)
        down[: delta.rank] = delta.down / scale_down
        factors[module] = (down, up)
    return LoraWeights(settings.rank, settings.alpha, factors, settings.target_modules)


def _notes(loras: Sequence[LoraWeights], asked: int | None, rank: int) -> tuple[str, ...]:
    """Returns what the reader of the report should know besides the numbers."""
    notes = []
    pairs = [(lora.rank, lora.alpha) for lora in loras]
    if len(set(pairs)) > 1:
        listed = ", ".join(f"{rank}/{alpha:g}" for rank, alpha in pairs)
        notes.append(
            f"the adapters differ in rank/alpha ({listed}); their deltas (alpha/rank) B A were merged"
        )
    if asked is not None and rank < asked:
        notes.append(f"rank {rank} holds everything; the {asked} asked for are not needed")
    return tuple(notes)
