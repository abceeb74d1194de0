"""The fused on-policy walk: rollout and training states in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flow_opd.protocols import Dynamics, VelocityField
from flow_opd.rollout.sampler import WalkNoise, schedule_rows
from flow_opd.types import Conditioning, Schedule, TransitionBatch


def on_policy_walk(
    student: VelocityField,
    conditioning: Conditioning,
    *,
    schedule: Schedule,
    dynamics: Dynamics,
    weights: Tensor,
    noise: WalkNoise,
    ranks: Tensor | None = None,
) -> Iterator[TransitionBatch]:
    """Yields, step by step, the states that the student visits, with its velocity still in the graph.

    The state is detached between steps, so the gradient of a direct objective can be taken at each
    step before the walk goes on: one student forward and one backward per step, no stored
    trajectories, no decoded image. The caller runs backward on what it got before asking for more;
    weights must not change during a walk, or the later states are off-policy.

    A state without weight is walked without gradient, and is not yielded.

    Args:
        student: the policy that is trained; called with gradients.
        conditioning: B rows.
        schedule: T steps.
        dynamics: turns a velocity into the Gaussian of a step.
        weights: what a squared velocity gap counts at each step, [T], >= 0, on the CPU.
        noise: of the B trajectories; the walk happens on its device.
        ranks: place of each state in a random order of its step's states, [B, T], for targets that are
            asked at a share of them.
    """
    state = noise.start
    conditioning = conditioning.to(state.device)
    for step, weight in enumerate(weights.tolist()):
        grid = schedule_rows(schedule, step, len(state), state.device)
        with torch.set_grad_enabled(weight > 0 and torch.is_grad_enabled()):
            velocity = student.velocity(state, grid[0], conditioning)
        if weight > 0:
            yield TransitionBatch(
                state,
                *grid,
                conditioning,
                weight=torch.full_like(grid[0], weight),
                rank=None if ranks is None else ranks[:, step],
                velocity=velocity,
            )
        state = noise.after(dynamics(state, velocity.detach(), *grid), step)
