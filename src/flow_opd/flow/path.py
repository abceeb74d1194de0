"""The path between data and noise: its velocities, its noise levels, and which steps on it are stochastic."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Generator, Tensor

from flow_opd.types import Schedule


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


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Returns v_u + scale (v_c - v_u); scale 1 is the conditional velocity itself.

    Source: Ho and Salimans, arXiv 2207.12598.
    """
    return unconditional + scale * (conditional - unconditional)


def make_schedule(sigmas: Tensor, *, noise_level: float, stochastic_steps: tuple[int, int]) -> Schedule:
    """Returns the grid with noise level a on steps first <= t < stop, and deterministic steps elsewhere.

    Args:
        sigmas: [T + 1], descending, from 1 to 0.
        noise_level: a >= 0.
        stochastic_steps: (first, stop) with 0 <= first <= stop <= T; (0, 0) is an ODE.

    Raises:
        ValueError: if the grid does not descend, the window lies outside it or the noise level is negative.
    """
    if noise_level < 0:
        raise ValueError(f"noise_level must not be negative, got {noise_level}")
    num_steps = sigmas.shape[0] - 1
    if not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise ValueError(f"sigmas must descend, got {sigmas.tolist()}")
    first, stop = stochastic_steps
    if not 0 <= first <= stop <= num_steps:
        raise ValueError(f"stochastic steps {stochastic_steps} lie outside 0..{num_steps}")
    noise_levels = torch.zeros(num_steps)
    noise_levels[first:stop] = noise_level
    return Schedule(sigmas.float(), noise_levels)


def without_noise(schedule: Schedule, steps: Collection[int]) -> Schedule:
    """Returns the schedule with `steps` made deterministic."""
    quiet = torch.tensor([step in steps for step in range(len(schedule))])
    return Schedule(schedule.sigmas, schedule.noise_levels.masked_fill(quiet, 0.0))
