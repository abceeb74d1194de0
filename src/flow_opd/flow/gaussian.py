"""Log-probabilities and divergences of the Gaussian of one reverse step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flow_opd.types import StepDistribution


def sample(step: StepDistribution, noise: Tensor) -> Tensor:
    """Returns mean + std * noise, [M, C, H, W], for standard normal noise [M, C, H, W]."""
    return step.mean + step.std * noise


def log_prob_mean(step: StepDistribution, next_latents: Tensor) -> Tensor:
    """Returns log N(next_latents; mean, std^2) averaged over latent dimensions, [M], float32.

    The mean over dimensions, not the sum, is what the policy gradient's ratio and clip range refer to.

    Args:
        step: mean [M, C, H, W] and std [M, 1, 1, 1] > 0.
        next_latents: the sampled successor, [M, C, H, W].

    A deterministic step (std = 0) has no density: the result is not finite there.
    """
    z = (next_latents.float() - step.mean) / step.std
    density = -0.5 * z**2 - torch.log(step.std) - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)


def transition_kl(student: StepDistribution, target: StepDistribution) -> Tensor:
    """Returns KL(student || target) of two steps that share their std, summed over dimensions, [M].

        KL = |mean_student - mean_target|^2 / (2 std^2);   at std = 0 the limit used is |...|^2 / 2

    Source: Flow-OPD, arXiv 2605.08063 (transition KL); DiffusionOPD, arXiv 2605.15055 (ODE limit).
    """
    gap = (student.mean - target.mean).flatten(1).pow(2).sum(1)
    variance = student.std.flatten().pow(2)
    return gap / (2 * torch.where(variance > 0, variance, torch.ones_like(variance)))
