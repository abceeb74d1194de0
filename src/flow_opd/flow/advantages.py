"""From rewards to advantages."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, groups: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """Returns (r - mean of its group) / (std of its group + epsilon), [B].

    A group whose rewards are all equal gets advantages of zero.

    Source: Flow-GRPO, arXiv 2505.05470, equation 4 (GRPO's group-relative advantage).

    Args:
        rewards: total reward of each image, [B], finite.
        groups: index of each image's group (its prompt), [B], integers from 0.

    Raises:
        ValueError: if the shapes differ or a reward is not finite.
    """
    if rewards.dim() != 1 or rewards.shape != groups.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must both be [B]")
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError("rewards must be finite")
    values = rewards.double()
    count = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(
        0, groups, torch.ones_like(values)
    )
    mean = torch.zeros_like(count).index_add_(0, groups, values) / count
    centred = values - mean[groups]
    variance = torch.zeros_like(count).index_add_(0, groups, centred**2) / count
    return (centred / (variance.sqrt()[groups] + epsilon)).float()
