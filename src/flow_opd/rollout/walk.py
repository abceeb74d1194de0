"""The fused on-policy walk: rollout and training states in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Generator

from flow_opd.flow.gaussian import sample
from flow_opd.protocols import Dynamics, VelocityField
from flow_opd.rollout.sampler import draw_noise, schedule_rows
from flow_opd.types import Conditioning, Schedule, TransitionBatch


def on_policy_walk(
    student: VelocityField,
    conditioning: Conditioning,
    *,
    latent_shape: tuple[int, int, int],
    schedule: Schedule,
    dynamics: Dynamics,
    generators: Sequence[Generator],
) -> Iterator[TransitionBatch]:
    """Yields, step by step, the states that the student visits, with its velocity still in the graph.

    The state is detached between steps, so the gradient of a direct objective can be taken at each
    step before the walk goes on: one student forward and one backward per step, no stored
    trajectories, no decoded image. The caller runs backward on what it got before asking for more;
    weights must not change during a walk, or the later states are off-policy.

    Args:
        student: the policy that is trained; called with gradients.
        conditioning: B rows.
        latent_shape: C, H, W.
        schedule: T steps.
        dynamics: turns a velocity into the Gaussian of a step.
        generators: B generators: the start, then the noise of each stochastic step.
    """
    state = draw_noise(latent_shape, generators)
    for step in range(len(schedule)):
        sigma, sigma_next, noise_level = schedule_rows(schedule, step, len(state))
        velocity = student.velocity(state, sigma, conditioning)
        yield TransitionBatch(state, sigma, sigma_next, noise_level, conditioning, velocity=velocity)
        gaussian = dynamics(state, velocity.detach(), sigma, sigma_next, noise_level)
        state = gaussian.mean
        if schedule.noise_levels[step] > 0:
            state = sample(gaussian, draw_noise(latent_shape, generators))
