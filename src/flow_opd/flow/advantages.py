"""From rewards to advantages: one reward, or several of them in one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class RoundScores:
    """What the rewards of a run say about the images of a round."""

    values: Tensor  # [B, R], 0 where a reward does not judge
    judged: Tensor  # [B, R], bool; the same for all images of a group
    weights: Tensor  # [R], > 0
    groups: Tensor  # [B], index of each image's group (its prompt), integers from 0
    tasks: Tensor  # [B], index of each image's task, integers from 0

    @property
    def totals(self) -> Tensor:
        """The weighted sum of the rewards that judge an image, [B]."""
        return (self.values * self.weights).sum(1)


class Normalization(Protocol):
    """How the scores of a round become one advantage for each image."""

    def __call__(self, scores: RoundScores, *, round_spread: bool = False) -> Tensor:
        """Returns the advantages, [B].

        Args:
            scores: of all images of the round.
            round_spread: divides by the standard deviation over the round, not over the image's group.
        """
        ...


def advantages_of_the_sum(scores: RoundScores, *, round_spread: bool = False) -> Tensor:
    """Returns the group-relative advantages of the weighted sum of the rewards, [B].

        A = (r - mean of its group) / (std + epsilon),   r = sum_i weight_i r_i

    Weights act on the rewards' own scales. With the spread of the round, std is that of all images of the
    task: the totals of two tasks have different scales.

    Source: Flow-GRPO, arXiv 2505.05470, equation 4.
    """
    return group_advantages(scores.totals, scores.groups, scores.tasks if round_spread else None)


def sum_of_the_advantages(scores: RoundScores, *, round_spread: bool = False) -> Tensor:
    """Returns the weighted sum of the group-relative advantages of each reward, [B].

        A = sum_i weight_i (r_i - mean of its group) / (std_i + epsilon)

    Weights are relative importances: the scale of a reward has left before it is weighed. With the spread
    of the round, std_i is that of all images that reward i judges.

    Source: GDPO, arXiv 2601.05242 (normalization of each reward within the group). Differs: the sum is not
    divided by its spread over the batch once more, so that an image which one reward of weight 1 judges has
    the advantage that it has in a run of its own.
    """
    total = torch.zeros(len(scores.groups))
    for values, judged, weight in zip(scores.values.T, scores.judged.T, scores.weights, strict=True):
        if not bool(judged.any()):  # no prompt of its tasks in this round
            continue
        groups = scores.groups[judged]
        pools = torch.zeros_like(groups) if round_spread else None
        total[judged] += weight * group_advantages(values[judged], groups, pools)
    return total


NORMALIZATIONS: dict[str, Normalization] = {"sum": advantages_of_the_sum, "each": sum_of_the_advantages}


def group_advantages(
    rewards: Tensor, groups: Tensor, pools: Tensor | None = None, *, epsilon: float = 1e-4
) -> Tensor:
    """Returns (r - mean of its group) / (std of its pool + epsilon), [B].

    A group whose rewards are all equal gets advantages of zero. The pool is the group in the paper. With one
    pool of all images, a group with small differences gets small advantages.

    Source: Flow-GRPO, arXiv 2505.05470, equation 4 (GRPO's group-relative advantage).

    Args:
        rewards: of each image, [B], finite.
        groups: index of each image's group (its prompt), [B], integers from 0.
        pools: index of the images whose standard deviation divides, [B]; None takes the groups.
        epsilon: added to the standard deviation.

    Raises:
        ValueError: if the shapes differ or a reward is not finite.
    """
    if rewards.dim() != 1 or rewards.shape != groups.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must both be [B]")
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError("rewards must be finite")
    values = rewards.double()
    centred = values - _means(values, groups)
    if pools is None:
        variance = _means(centred**2, groups)
    else:
        variance = _means((values - _means(values, pools)) ** 2, pools)
    return (centred / (variance.sqrt() + epsilon)).float()


def _means(values: Tensor, parts: Tensor) -> Tensor:
    """Returns for each value the mean of all values of its part, [B]."""
    count, total = torch.zeros(2, int(parts.max()) + 1, dtype=values.dtype)
    count.index_add_(0, parts, torch.ones_like(values))
    total.index_add_(0, parts, values)
    means: Tensor = (total / count)[parts]
    return means
