"""Reverse steps: the Gaussian of x at sigma_next, given x and the velocity at sigma.

Every function has the signature of `protocols.Dynamics`. The noise level is given per row, so a
trajectory may be stochastic in a window of its steps and deterministic elsewhere. No function looks at the
values of its tensors, which would make an accelerator wait: the schedule and the settings check them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flow_opd.types import StepDistribution


def _rows(value: Tensor) -> Tensor:
    return value.float().view(-1, 1, 1, 1)


def diffusion(sigma: Tensor, sigma_next: Tensor, noise_level: Tensor) -> Tensor:
    """Returns g(sigma) = a sqrt(sigma / (1 - sigma)) of the Flow-GRPO SDE.

    At sigma = 1, where g diverges, the next grid value stands in for sigma, in numerator and denominator
    (docs/units.md has the difference to the denominator alone).

    Source: Flow-GRPO, arXiv 2505.05470.

    Args:
        sigma, sigma_next: noise levels in [0, 1], descending, any shape.
        noise_level: a >= 0, broadcastable.
    """
    inside = torch.where(sigma >= 1.0, sigma_next, sigma)
    return noise_level * torch.sqrt(inside / (1 - inside))


def ode_step(
    latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor
) -> StepDistribution:
    """Returns the Euler step x + v dsigma of the probability-flow ODE; its std is 0.

    Args:
        latents: x_sigma, [M, C, H, W], computed in float32.
        velocity: v at (x_sigma, sigma) after guidance, [M, C, H, W].
        sigma, sigma_next: noise levels, [M], descending.
        noise_level: ignored, [M]; the signature is that of every dynamics.
    """
    dsigma = _rows(sigma_next) - _rows(sigma)
    return StepDistribution(latents.float() + velocity.float() * dsigma, torch.zeros_like(dsigma))


def sde_step(
    latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor
) -> StepDistribution:
    """Gaussian of one reverse step of the Flow-GRPO SDE, which keeps the ODE's marginals.

        g    = a sqrt(sigma / (1 - sigma)),   dsigma = sigma' - sigma < 0
        mean = x (1 + g^2 / (2 sigma) dsigma) + v (1 + g^2 (1 - sigma) / (2 sigma)) dsigma
        std  = g sqrt(-dsigma)

    Source: Flow-GRPO, arXiv 2505.05470. With a = 0 this is the Euler step x + v dsigma.

    Args:
        latents: x_sigma, [M, C, H, W], any float dtype; computed in float32.
        velocity: v at (x_sigma, sigma) after guidance, [M, C, H, W].
        sigma, sigma_next: noise levels, [M], descending.
        noise_level: a >= 0, [M], dimensionless.

    Returns:
        mean [M, C, H, W] and std [M, 1, 1, 1], float32.
    """
    x, v = latents.float(), velocity.float()
    now, dsigma = _rows(sigma), _rows(sigma_next) - _rows(sigma)
    g = diffusion(now, _rows(sigma_next), _rows(noise_level))
    drift = g**2 / (2 * now)
    mean = x * (1 + drift * dsigma) + v * (1 + drift * (1 - now)) * dsigma
    return StepDistribution(mean, g * torch.sqrt(-dsigma))


def cps_step(
    latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor
) -> StepDistribution:
    """Gaussian of one coefficient-preserving step, whose latents keep exactly the noise that sigma' says.

        std  = sigma' sin(a pi / 2)
        mean = (1 - sigma') x0_hat + sqrt(sigma'^2 - std^2) eps_hat
        x0_hat = x - sigma v,   eps_hat = x + (1 - sigma) v

    Source: Flow-CPS, in the repository flow_grpo. With a = 0 this is the Euler step.

    Args:
        latents, velocity, sigma, sigma_next: as in `sde_step`.
        noise_level: a in [0, 1], [M].
    """
    x, v = latents.float(), velocity.float()
    now, after = _rows(sigma), _rows(sigma_next)
    x0_hat, eps_hat = x - now * v, x + (1 - now) * v
    std = after * torch.sin(_rows(noise_level) * math.pi / 2)
    kept = after * torch.cos(_rows(noise_level) * math.pi / 2)
    return StepDistribution((1 - after) * x0_hat + kept * eps_hat, std)
