"""The straight path between data and noise, and how training draws its noise levels."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def target_velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """Returns eps - x0 = dx/dsigma on the path x_sigma = (1 - sigma) x0 + sigma eps."""
    return noise - x0


def shifted_uniform_sigmas(count: int, *, shift: float, generator: Generator) -> Tensor:
    """Returns `count` noise levels in [0, 1), uniform and then moved towards 1 by the shift.

        sigma = shift u / (1 + (shift - 1) u),   u ~ U(0, 1)

    Source: Stable Diffusion 3, arXiv 2403.03206, equation 23. Differs: u is uniform, not logit-normal: a
    sampler starts at sigma = 1, where the logit-normal density is nearly 0 (docs/LOG.md, entry 5).
    """
    u = torch.rand(count, generator=generator)
    return shift * u / (1 + (shift - 1) * u)


def logit_normal_sigmas(count: int, *, generator: Generator) -> Tensor:
    """Returns `count` noise levels in (0, 1), sigmoid of standard normals: the middle levels most often.

    Source: Stable Diffusion 3, arXiv 2403.03206, equation 19 with location 0 and scale 1.
    """
    return torch.randn(count, generator=generator).sigmoid()
