"""The clipped policy gradient of PPO and Flow-GRPO."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_opd.flow.gaussian import log_prob_mean
from flow_opd.protocols import Dynamics
from flow_opd.types import ImageBatch, LossOutput, TransitionBatch


class ClippedPolicyGradient:
    """-min(ratio A, clip(ratio, 1 - c, 1 + c) A) with the ratio to the stored behaviour policy.

    The ratio is exp of the *mean* log-ratio over latent dimensions; that is why clip ranges are small.

    Source: Flow-GRPO, arXiv 2505.05470, equation 5; PPO, arXiv 1707.06347, equation 7.
    """

    name = "policy_gradient"

    def __init__(self, dynamics: Dynamics, *, clip_range: float) -> None:
        """Takes the dynamics of the rollouts and the ratio's clip range."""
        self.dynamics = dynamics
        self.clip_range = clip_range

    def __call__(self, velocity: Tensor, batch: TransitionBatch | ImageBatch) -> LossOutput:
        """Returns the loss summed over rows.

        Raises:
            ValueError: if advantages or behaviour log-probabilities are not [M]; a [M, 1] advantage
                would broadcast to [M, M] unseen.
        """
        assert isinstance(batch, TransitionBatch), "a policy gradient needs transitions"
        assert batch.advantage is not None
        assert batch.behaviour_log_prob is not None
        assert batch.next_latents is not None
        expected = (len(batch),)
        for label, value in (
            ("advantage", batch.advantage),
            ("behaviour_log_prob", batch.behaviour_log_prob),
        ):
            if value.shape != expected:
                raise ValueError(f"{label} must have shape {expected}, got {tuple(value.shape)}")
        grid = (batch.sigma, batch.sigma_next, batch.noise_level)
        step = self.dynamics(batch.latents, velocity, *grid)
        ratio = torch.exp(log_prob_mean(step, batch.next_latents) - batch.behaviour_log_prob)
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        loss = torch.maximum(-batch.advantage * ratio, -batch.advantage * clipped).sum()
        with torch.no_grad():
            metrics = {
                self.name: loss.detach(),
                "ratio": ratio.sum(),
                "clipped": (ratio.sub(1).abs() > self.clip_range).float().sum(),
            }
        return LossOutput(loss, len(batch), metrics)
