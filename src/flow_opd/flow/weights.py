"""How much each state of a trajectory counts: weights of the squared velocity error, one for each step.

Noise and weight are two choices: a step may add no noise and be learnt all the same, or add noise and not be
learnt. Each function returns relative weights; `scaled` brings them to one size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flow_opd.flow.dynamics import sde_step
from flow_opd.protocols import Dynamics
from flow_opd.types import Schedule

StateWeights = Callable[[Schedule, Dynamics], Tensor]


def step_response(schedule: Schedule, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    """Returns d mean / d v and the std of each step, both [T]: every dynamics is linear in the velocity."""
    count = len(schedule)
    point = torch.zeros(count, 1, 1, 1)
    grid = (schedule.sigmas[:-1], schedule.sigmas[1:], schedule.noise_levels)
    still, moved = (dynamics(point, velocity, *grid) for velocity in (point, point + 1))
    return (moved.mean - still.mean).flatten(), moved.std.flatten()


def transition_weights(schedule: Schedule, dynamics: Dynamics) -> Tensor:
    """Returns w with transition KL = w |v_student - v_target|^2 for the steps as they are walked, [T].

        w = (d mean / d v)^2 / (2 std^2);   at std = 0 the limit used is (d mean / d v)^2 / 2

    A deterministic step then counts dsigma^2 / 2, a noisy one much more: with these weights, choosing which
    steps add noise also chooses which steps dominate the loss.

    Source: Flow-OPD, arXiv 2605.08063 (transition KL); DiffusionOPD, arXiv 2605.15055 (ODE limit).
    """
    response, std = step_response(schedule, dynamics)
    variance = std**2
    return response**2 / (2 * torch.where(variance > 0, variance, torch.ones_like(variance)))


def velocity_weights(schedule: Schedule, dynamics: Dynamics) -> Tensor:
    """Returns 1 for every step, [T]: an error in velocity counts the same at every noise level.

    Source: ours; flow matching with uniform weights, arXiv 2210.02747, at the sampler's own levels.
    """
    return torch.ones(len(schedule))


def x0_weights(schedule: Schedule, dynamics: Dynamics) -> Tensor:
    """Returns sigma^2, [T]: an error in x0_hat = x - sigma v counts the same at every noise level.

    Source: ours, from x0_hat's definition.
    """
    return schedule.sigmas[:-1] ** 2


def noisy_weights(noise_level: float) -> StateWeights:
    """Returns the transition weights of Flow-GRPO's SDE with noise of this level in every step, [T].

    They do not depend on how the states are sampled. (CPS's own transition weights would lie nearly all on a
    step to a tiny noise level.)

    Source: ours, of the SDE in `flow/dynamics.py:sde_step`.
    """

    def weights(schedule: Schedule, dynamics: Dynamics) -> Tensor:
        everywhere = torch.full_like(schedule.noise_levels, noise_level)
        return transition_weights(Schedule(schedule.sigmas, everywhere), sde_step)

    return weights


def given_weights(values: tuple[float, ...]) -> StateWeights:
    """Returns weights that are the same whatever the walk; the schedule must have as many steps."""

    def weights(schedule: Schedule, dynamics: Dynamics) -> Tensor:
        assert len(values) == len(schedule), (values, len(schedule))
        largest = max(values)  # in float64: relative weights may be of any size
        return torch.tensor([value / largest for value in values])

    return weights


def scaled(weights: StateWeights) -> StateWeights:
    """Returns the weights scaled so that a trajectory's add up to those of its transition KL.

    Another choice of weights then moves weight between states and leaves the size of the loss, against which
    clip norm, lambda and beta were chosen.
    """

    def whole(schedule: Schedule, dynamics: Dynamics) -> Tensor:
        found = weights(schedule, dynamics)
        return found * (transition_weights(schedule, dynamics).sum() / found.sum())

    return whole
