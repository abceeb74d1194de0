"""The ways to combine weight changes, by name; all but the negative control act on deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from flow_opd.adapters.lowrank import LowRank
from flow_opd.errors import AdapterError


class Combine(Protocol):
    """One delta from the K deltas of a module."""

    def __call__(
        self, parts: Sequence[LowRank], weights: Sequence[float], generator: torch.Generator
    ) -> LowRank | Tensor:
        """Returns the merged delta in factors, or dense, [out, in].

        Args:
            parts: the deltas, float64.
            weights: of each.
            generator: of this module, for methods that draw.
        """
        ...


@dataclass(frozen=True)
class MergeMethod:
    """How to combine the deltas of one module, and what becomes of the result."""

    name: str
    combine: Combine
    weights: Literal["equal", "given", "any"] = "any"  # whether the caller weighs the adapters
    rank: int | None = None  # to which the result is cut; None keeps its factors
    alpha: float | None = None  # of the LoRA; None: twice its rank


def weighted_sum(parts: Sequence[LowRank], weights: Sequence[float], generator: torch.Generator) -> LowRank:
    """Returns sum_k w_k delta_k by stacked factors: no error at all."""
    return LowRank.stack(parts, weights)


def ties(
    parts: Sequence[LowRank],
    weights: Sequence[float],
    generator: torch.Generator,
    *,
    density: float = 0.2,
) -> Tensor:
    """Returns the TIES merge: trim small entries, elect a sign, average those who agree.

    Source: TIES-Merging, arXiv 2306.01708. Differs: trims per module, not over all weights at once.

    Args:
        parts, weights, generator: as in `Combine`.
        density: share of the entries of a delta that stays, in (0, 1].

    Raises:
        AdapterError: if a weight is negative, because signs are elected by weight.
    """
    if min(weights) < 0:
        raise AdapterError(
            "weights of a TIES merge", value=list(weights), allowed="0 and above", fix="use method svd"
        )
    trimmed = torch.stack([_trim(part.dense(), density) for part in parts])
    share = torch.tensor(weights, dtype=trimmed.dtype).view(-1, 1, 1)
    sign = (share * trimmed).sum(0).sign()
    agrees = trimmed.sign() == sign
    votes = (share * agrees).sum(0)
    merged = (share * trimmed * agrees).sum(0) / torch.where(votes > 0, votes, 1.0)
    return merged


def dare(
    parts: Sequence[LowRank],
    weights: Sequence[float],
    generator: torch.Generator,
    *,
    drop: float = 0.5,
) -> Tensor:
    """Returns the DARE merge: drop entries at random, rescale the rest by 1 / (1 - p), add by weight.

    Source: DARE, arXiv 2311.03099.

    Args:
        parts, weights, generator: as in `Combine`.
        drop: p, probability that an entry is dropped, in [0, 1).
    """
    total = torch.zeros_like(parts[0].dense())
    for part, weight in zip(parts, weights, strict=True):
        kept = torch.rand(total.shape, generator=generator, dtype=total.dtype) >= drop
        total += weight * part.dense() * kept / (1 - drop)
    return total


def factor_average(parts: Sequence[LowRank], weights: Sequence[float], generator: torch.Generator) -> LowRank:
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
