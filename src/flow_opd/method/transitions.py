"""From stored trajectories to rows that an objective can be taken over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flow_opd.flow.weights import StateWeights, transition_weights
from flow_opd.method.rollouts import micro_rows, schedule_rows
from flow_opd.protocols import Dynamics
from flow_opd.types import Conditioning, Rollout, Schedule, TransitionBatch


def join_rollouts(parts: Sequence[Rollout]) -> Rollout:
    """Returns the trajectories of all `parts`, one after another; they share their schedule."""
    return Rollout(
        tuple(prompt for part in parts for prompt in part.prompts),
        Conditioning.cat([part.conditioning for part in parts]),
        parts[0].schedule,
        torch.cat([part.latents for part in parts]),
        torch.cat([part.log_prob_mean for part in parts]),
        None if parts[0].starts is None else tuple(each for part in parts for each in part.starts or ()),
    )


def transitions(
    rollout: Rollout,
    advantages: Tensor,
    *,
    weights: Tensor,
    rows: Sequence[int],
    steps: Sequence[int],
    micro_batch_size: int,
) -> Iterator[TransitionBatch]:
    """Yields the chosen steps of the chosen trajectories in micro-batches, step by step.

    Args:
        rollout: B trajectories with their behaviour log-probabilities.
        advantages: [B, T].
        weights: of the squared velocity error at each step, [T], on the CPU.
        rows: trajectories that take part.
        steps: stochastic steps that take part.
        micro_batch_size: rows of one batch; it changes memory, not gradients.
    """
    for step in steps:
        weight = weights.tolist()[step]
        state_ids = rollout.state_ids(step)
        for part in micro_rows(len(rows), micro_batch_size):
            index = [rows[i] for i in part]
            sigma, sigma_next, noise_level = schedule_rows(
                rollout.schedule, step, len(index), rollout.latents.device
            )
            yield TransitionBatch(
                latents=rollout.latents[index, step],
                sigma=sigma,
                sigma_next=sigma_next,
                noise_level=noise_level,
                conditioning=rollout.conditioning.rows(index),
                weight=torch.full_like(sigma, weight),
                next_latents=rollout.latents[index, step + 1],
                behaviour_log_prob=rollout.log_prob_mean[index, step],
                advantage=advantages[index, step],
                state_ids=None if state_ids is None else tuple(state_ids[row] for row in index),
            )


def shares_of_updates(own: Sequence[int], total: int, updates: int) -> Iterator[list[int]]:
    """Yields, for each update of a round, the places in `own` of the rows that it trains.

    All `total` rows are split into `updates` consecutive shares; a process trains those rows of a share
    that are its own, so an update sees the same rows on any number of processes.
    """
    for share in torch.arange(total).tensor_split(updates):
        rows = set(share.tolist())
        yield [place for place, row in enumerate(own) if row in rows]


def advantage_weights(
    schedule: Schedule, dynamics: Dynamics, steps: Sequence[int], state_weights: StateWeights
) -> Tensor:
    """Returns the factors of each step's advantages, [T], that give the step the weight of its state.

        sqrt(u_t / w_t) with w_t = (d mean_t / d v)^2 / (2 std_t^2),   scaled to a mean of 1 over `steps`;
        0 elsewhere

    u_t is the state's weight, w_t that of the transition KL. The score of a step with respect to the velocity
    is (d mean / d v) / std times a standard normal, so its variance is 2 w_t; multiplied by this it is in
    proportion to u_t, as the weight of the squared velocity error is in a distillation.

    Transition weights give exactly 1: a policy gradient as it comes. There w_t grows as the noise shrinks: on
    a grid of 8 steps with shift 3 the fifth step has 34 times the gradient variance of the first, and decides
    the update alone. Velocity weights give std_t / |d mean_t / d v|, and a velocity counts equally at every
    trained step; x0 weights give sigma_t times that.

    It is for advantages alone. A KL to the base keeps its transition weights, so that beta is the weight of a
    KL whatever the states count.

    Source: by velocity weights, the noise-aware weighting of TempFlow-GRPO, arXiv 2508.04324. Differs: it
    takes std_t alone.

    Args:
        schedule: of the rollout; steps that are not trained may be deterministic.
        dynamics: turns a velocity into the Gaussian of a step.
        steps: trained steps, all with a std and a state weight above 0.
        state_weights: relative weights of the states.
    """
    chosen = list(steps)
    counts, own = (each(schedule, dynamics)[chosen] for each in (state_weights, transition_weights))
    weights = torch.zeros(len(schedule))
    weights[chosen] = (counts / own).sqrt()
    return weights * (len(chosen) / weights.sum())
