"""From stored trajectories to rows that an objective can be taken over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flow_opd.rollout.sampler import micro_rows, schedule_rows
from flow_opd.types import Conditioning, Rollout, TransitionBatch


def join_rollouts(parts: Sequence[Rollout]) -> Rollout:
    """Returns the trajectories of all `parts`, one after another; they share their schedule."""
    return Rollout(
        tuple(prompt for part in parts for prompt in part.prompts),
        Conditioning.cat([part.conditioning for part in parts]),
        parts[0].schedule,
        torch.cat([part.latents for part in parts]),
        torch.cat([part.log_prob_mean for part in parts]),
    )


def transitions(
    rollout: Rollout, advantages: Tensor, *, rows: Sequence[int], steps: Sequence[int], micro_batch_size: int
) -> Iterator[TransitionBatch]:
    """Yields the chosen steps of the chosen trajectories in micro-batches, step by step.

    Args:
        rollout: B trajectories with their behaviour log-probabilities.
        advantages: [B, T].
        rows: trajectories that take part.
        steps: stochastic steps that take part.
        micro_batch_size: rows of one batch; it changes memory, not gradients.
    """
    for step in steps:
        for part in micro_rows(len(rows), micro_batch_size):
            index = [rows[i] for i in part]
            sigma, sigma_next, noise_level = schedule_rows(rollout.schedule, step, len(index))
            yield TransitionBatch(
                latents=rollout.latents[index, step],
                sigma=sigma,
                sigma_next=sigma_next,
                noise_level=noise_level,
                conditioning=rollout.conditioning.rows(index),
                next_latents=rollout.latents[index, step + 1],
                behaviour_log_prob=rollout.log_prob_mean[index, step],
                advantage=advantages[index, step],
            )
