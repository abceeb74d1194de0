"""The straight path between data and noise, and how training draws its noise levels."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def target_velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """Returns eps - x0 = dx/dsigma on the path x_sigma = (1 - sigma) x0 + sigma eps."""
    return noise - x0


def predicted_x0(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Returns x0_hat = x_sigma - sigma v, [M, C, H, W], for sigma [M]."""
    return latents - sigma.view(-1, 1, 1, 1) * velocity


def logit_normal_sigmas(count: int, *, shift: float, generator: Generator) -> Tensor:
    """Returns `count` noise levels, logit-normal and then shifted towards noise, in (0, 1).

        u = sigmoid(z), z ~ N(0, 1);   sigma = shift u / (1 + (shift - 1) u)

    Source: Stable Diffusion 3, arXiv 2403.03206, equations 19 and 23.
    """
    u = torch.sigmoid(torch.randn(count, generator=generator))
    return shift * u / (1 + (shift - 1) * u)
