"""Sampling: a velocity field, a schedule and noise give trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Generator, Tensor

from flow_opd.flow.dynamics import log_prob_mean, sample
from flow_opd.flow.weights import step_response
from flow_opd.method.joint import velocity_of_states
from flow_opd.protocols import Dynamics, VelocityField
from flow_opd.types import Conditioning, Prompt, Rollout, Schedule, StepDistribution

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Repeatable(Generic[Batch]):
    """The micro-batches of an update, made again on each iteration."""

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        """Returns the first to the last micro-batch."""
        return self.make()


def draw_noise(latent_shape: tuple[int, int, int], generators: Sequence[Generator]) -> Tensor:
    """Returns standard normal latents [B, C, H, W], on the CPU; row i comes from generator i alone.

    One generator a row makes an image a function of its own seed, whatever else is in the batch.
    """
    return torch.stack([torch.randn(latent_shape, generator=each) for each in generators])


class WalkNoise:
    """The noise of whole trajectories, drawn beforehand and brought to the device at once.

    Each generator gives the start, then the noise of each stochastic step, so an accelerator never waits
    for noise in the middle of a walk.
    """

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        schedule: Schedule,
        generators: Sequence[Generator],
        device: torch.device,
        starts: Sequence[Generator] | None = None,
    ) -> None:
        """Draws everything.

        Args:
            latent_shape: C, H, W.
            schedule: its stochastic steps need noise.
            generators: one for each of B trajectories.
            device: where the walk happens.
            starts: B generators for the start alone, where it is not to come from `generators`.
        """
        self.start = draw_noise(latent_shape, starts or generators).to(device)
        """[B, C, H, W], the latents at sigma = 1."""
        noisy = [step for step, level in enumerate(schedule.noise_levels.tolist()) if level > 0]
        drawn = [draw_noise(latent_shape, generators) for _ in noisy]
        self._steps = dict(zip(noisy, torch.stack(drawn).to(device) if drawn else (), strict=True))

    def after(self, gaussian: StepDistribution, step: int) -> Tensor:
        """Returns the latents after step `step`, [B, C, H, W]: its mean, with noise where it has some."""
        return sample(gaussian, self._steps[step]) if step in self._steps else gaussian.mean


def schedule_rows(
    schedule: Schedule, step: int, count: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns sigma, sigma_next and the noise level of step `step`, each repeated to [count]."""
    sigma, sigma_next, noise_level = (
        torch.full((count,), value, device=device) for value in schedule.step(step)
    )
    return sigma, sigma_next, noise_level


def steps_with_density(schedule: Schedule, dynamics: Dynamics) -> list[int]:
    """Returns the steps that a policy gradient can train: those whose Gaussian has a std above 0.

    The last step of CPS has none, whatever its noise level.
    """
    _, std = step_response(schedule, dynamics)
    return torch.nonzero(std > 0).flatten().tolist()


@torch.no_grad()
def rollout(
    field: VelocityField,
    conditioning: Conditioning,
    prompts: Sequence[Prompt],
    *,
    schedule: Schedule,
    dynamics: Dynamics,
    noise: WalkNoise,
    starts: tuple[int, ...] | None = None,
) -> Rollout:
    """Returns the trajectories of `field`, one per row of `conditioning`, on the device of the noise.

    Args:
        field: the behaviour policy.
        conditioning, prompts: B rows.
        schedule: T steps; log-probabilities are kept where a step has a density.
        dynamics: turns a velocity into the Gaussian of a step.
        noise: of the B trajectories.
        starts: B numbers; rows of one number share start and prompt, and are walked as one until the first
            noise. None walks every row by itself.
    """
    state = noise.start
    conditioning = conditioning.to(state.device)
    dense = set(steps_with_density(schedule, dynamics))
    states, log_probs = [state], []
    for step in range(len(schedule)):
        grid = schedule_rows(schedule, step, len(state), state.device)
        state_ids = None if schedule.is_noisy_before(step) else starts
        velocity = velocity_of_states(field, state, grid[0], conditioning, state_ids)
        gaussian = dynamics(state, velocity, *grid)
        state = noise.after(gaussian, step)
        log_probs.append(log_prob_mean(gaussian, state) if step in dense else state.new_zeros(len(state)))
        states.append(state)
    return Rollout(
        tuple(prompts), conditioning, schedule, torch.stack(states, 1), torch.stack(log_probs, 1), starts
    )


@torch.no_grad()
def generate_latents(
    field: VelocityField,
    conditioning: Conditioning,
    *,
    latent_shape: tuple[int, int, int],
    sigmas: Tensor,
    generators: Sequence[Generator],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Returns x0, [B, C, H, W], by the deterministic Euler sampler on `sigmas` [T + 1], on `device`."""
    state = draw_noise(latent_shape, generators).to(device)
    conditioning = conditioning.to(device)
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        rows = torch.full((len(state),), sigma, device=device)
        velocity = field.velocity(state, rows, conditioning)
        state = state + velocity * (sigma_next - sigma)
    return state


def micro_rows(total: int, size: int) -> Iterator[range]:
    """Yields consecutive ranges of at most `size` that cover 0..total; the last one may be shorter."""
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
