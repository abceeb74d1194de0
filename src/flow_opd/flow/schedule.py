"""Which steps of a trajectory are stochastic, and how much noise each of them adds."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from flow_opd.types import Schedule


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
