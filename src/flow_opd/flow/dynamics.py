"""Reverse steps: the Gaussian of x at sigma_next, its log-probability and its divergence from another.

Every `..._step` has the signature of `protocols.Dynamics`. The noise level is given per row, so a
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
