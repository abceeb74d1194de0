"""Sampling: a velocity field, a schedule and noise give trajectories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor

from flow_opd.flow.gaussian import log_prob_mean, sample
from flow_opd.protocols import Dynamics, VelocityField
from flow_opd.types import Conditioning, Prompt, Rollout, Schedule


def draw_noise(latent_shape: tuple[int, int, int], generators: Sequence[Generator]) -> Tensor:
    """Returns standard normal latents [B, C, H, W]; row i comes from generator i alone.

    One generator a row makes an image a function of its own seed, whatever else is in the batch.
    """
    return torch.stack([torch.randn(latent_shape, generator=each) for each in generators])


def schedule_rows(schedule: Schedule, step: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns sigma, sigma_next and the noise level of step `step`, each repeated to [count]."""
    row = torch.ones(count)
    return (
        row * schedule.sigmas[step],
        row * schedule.sigmas[step + 1],
        row * schedule.noise_levels[step],
    )


def steps_with_density(schedule: Schedule, dynamics: Dynamics) -> list[int]:
    """Returns the steps that a policy gradient can train: those whose Gaussian has a std above 0.

    The last step of CPS has none, whatever its noise level.
    """
    point = torch.zeros(1, 1, 1, 1)
    return [
        step
        for step in range(len(schedule))
        if bool((dynamics(point, point, *schedule_rows(schedule, step, 1)).std > 0).all())
    ]


@torch.no_grad()
def rollout(
    field: VelocityField,
    conditioning: Conditioning,
    prompts: Sequence[Prompt],
    *,
    latent_shape: tuple[int, int, int],
    schedule: Schedule,
    dynamics: Dynamics,
    generators: Sequence[Generator],
    starts: Sequence[Generator] | None = None,
) -> Rollout:
    """Returns the trajectories of `field`, one per row of `conditioning`.

    Args:
        field: the behaviour policy.
        conditioning, prompts: B rows.
        latent_shape: C, H, W.
        schedule: T steps; log-probabilities are kept where a step has a density.
        dynamics: turns a velocity into the Gaussian of a step.
        generators: B generators: the start, then the noise of each stochastic step.
        starts: B generators for the start alone, where it is not to come from `generators`.
    """
    state = draw_noise(latent_shape, starts or generators)
    states, log_probs = [state], []
    for step in range(len(schedule)):
        sigma, sigma_next, noise_level = schedule_rows(schedule, step, len(state))
        velocity = field.velocity(state, sigma, conditioning)
        gaussian = dynamics(state, velocity, sigma, sigma_next, noise_level)
        if schedule.noise_levels[step] > 0:
            state = sample(gaussian, draw_noise(latent_shape, generators))
        else:
            state = gaussian.mean
        has_density = bool((gaussian.std > 0).all())
        log_probs.append(log_prob_mean(gaussian, state) if has_density else torch.zeros(len(state)))
        states.append(state)
    return Rollout(tuple(prompts), conditioning, schedule, torch.stack(states, 1), torch.stack(log_probs, 1))


@torch.no_grad()
def generate_latents(
    field: VelocityField,
    conditioning: Conditioning,
    *,
    latent_shape: tuple[int, int, int],
    sigmas: Tensor,
    generators: Sequence[Generator],
) -> Tensor:
    """Returns x0, [B, C, H, W], by the deterministic Euler sampler on `sigmas` [T + 1]."""
    state = draw_noise(latent_shape, generators)
    for sigma, sigma_next in pairwise(sigmas):
        velocity = field.velocity(state, sigma.expand(len(state)), conditioning)
        state = state + velocity * (sigma_next - sigma)
    return state


def micro_rows(total: int, size: int) -> Iterator[range]:
    """Yields consecutive ranges of at most `size` that cover 0..total; the last one may be ragged."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
