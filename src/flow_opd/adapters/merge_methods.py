"""The ways to combine weight changes, by name; all but the negative control act on deltas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flow_opd.adapters.lowrank import LowRank
from flow_opd.errors import AdapterError
from flow_opd.registry import Registry


@dataclass(frozen=True)
class MergeOptions:
    """What some merge methods can be tuned with."""

    density: float = 0.2  # TIES: share of the entries of a delta that stays, (0, 1]
    drop: float = 0.5  # DARE: probability that an entry is dropped, [0, 1)
    seed: int = 0  # DARE

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            AdapterError: if a value is out of range.
        """
        if not 0 < self.density <= 1:
            raise AdapterError("TIES density", value=self.density, allowed="above 0, up to 1", fix="try 0.2")
        if not 0 <= self.drop < 1:
            raise AdapterError("DARE drop rate", value=self.drop, allowed="from 0, below 1", fix="try 0.5")


Combine = Callable[[Sequence[LowRank], Sequence[float], MergeOptions, torch.Generator], LowRank | Tensor]
"""One delta from the K deltas of a module, their weights, the options, and a generator of this module."""


@dataclass(frozen=True)
class MergeMethod:
    """How to combine the deltas of one module, and what the caller may choose."""

    combine: Combine
    rank: Literal["own", "chosen"]  # own: the factors come out as LoRA; chosen: cut to a rank by SVD
    weights: Literal["equal", "given", "any"]


MERGE_METHODS: Registry[MergeMethod] = Registry("merge method")


def weighted_sum(
    parts: Sequence[LowRank], weights: Sequence[float], options: MergeOptions, generator: torch.Generator
) -> LowRank:
    """Returns sum_k w_k delta_k by stacked factors: no error at all."""
    return LowRank.stack(parts, weights)


def ties(
    parts: Sequence[LowRank], weights: Sequence[float], options: MergeOptions, generator: torch.Generator
) -> Tensor:
    """Returns the TIES merge: trim small entries, elect a sign, average those who agree.

    Source: TIES-Merging, arXiv 2306.01708. Differs: trims per module, not over all weights at once.

    Raises:
        AdapterError: if a weight is negative, because signs are elected by weight.
    """
    if min(weights) < 0:
        raise AdapterError(
            "weights of a TIES merge", value=list(weights), allowed="0 and above", fix="use method svd"
        )
    trimmed = torch.stack([_trim(part.dense(), options.density) for part in parts])
    share = torch.tensor(weights, dtype=trimmed.dtype).view(-1, 1, 1)
    sign = (share * trimmed).sum(0).sign()
    agrees = trimmed.sign() == sign
    votes = (share * agrees).sum(0)
    merged = (share * trimmed * agrees).sum(0) / torch.where(votes > 0, votes, 1.0)
    return merged


def dare(
    parts: Sequence[LowRank], weights: Sequence[float], options: MergeOptions, generator: torch.Generator
) -> Tensor:
    """Returns the DARE merge: drop entries at random, rescale the rest by 1 / (1 - p), add by weight.

    Source: DARE, arXiv 2311.03099.
    """
    total = torch.zeros_like(parts[0].dense())
    for part, weight in zip(parts, weights, strict=True):
        kept = torch.rand(total.shape, generator=generator, dtype=total.dtype) >= options.drop
        total += weight * part.dense() * kept / (1 - options.drop)
    return total


def factor_average(
    parts: Sequence[LowRank], weights: Sequence[float], options: MergeOptions, generator: torch.Generator
) -> LowRank:
    """Returns mean(B) mean(A), which is not mean(B A): a negative control.

    Raises:
        AdapterError: if the ranks differ.
    """
    if len({part.rank for part in parts}) > 1:
        raise AdapterError(
            "factor average of different ranks",
            value=[part.rank for part in parts],
            allowed="equal ranks",
            fix="use method mean or svd, which act on deltas",
        )
    pairs = list(zip(parts, weights, strict=True))
    up = torch.stack([weight * part.up for part, weight in pairs]).sum(0)
    down = torch.stack([weight * part.down for part, weight in pairs]).sum(0)
    return LowRank(up, down)


def _trim(delta: Tensor, density: float) -> Tensor:
    """Returns `delta` with all but its largest entries zero; `density` is the share that stays."""
    count = max(1, round(density * delta.numel()))
    flat = delta.flatten()
    kept = torch.zeros_like(flat)
    where = flat.abs().topk(count).indices
    kept[where] = flat[where]
    return kept.view_as(delta)


MERGE_METHODS.register("mean")(MergeMethod(weighted_sum, rank="own", weights="equal"))
MERGE_METHODS.register("weighted")(MergeMethod(weighted_sum, rank="own", weights="given"))
MERGE_METHODS.register("svd")(MergeMethod(weighted_sum, rank="chosen", weights="any"))
MERGE_METHODS.register("ties")(MergeMethod(ties, rank="chosen", weights="any"))
MERGE_METHODS.register("dare")(MergeMethod(dare, rank="chosen", weights="any"))
MERGE_METHODS.register("factor-average")(MergeMethod(factor_average, rank="own", weights="any"))
