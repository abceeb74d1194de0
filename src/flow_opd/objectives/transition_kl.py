"""The direct (pathwise) transition KL towards a target field: teachers, reference or anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_opd.flow.gaussian import transition_kl
from flow_opd.protocols import Dynamics, VelocityField
from flow_opd.types import ImageBatch, LossOutput, TransitionBatch


class TransitionKL:
    """KL(pi_student || pi_target) of one step at the visited states, differentiated in the velocity.

        KL = |mean_student - mean_target|^2 / (2 std^2) = w(sigma) |v_student - v_target|^2

    Differs: divided by the number of latent dimensions, as the log-ratio of the policy gradient is, so
    that learning rates and clip norms carry over between resolutions. The factor |dsigma| stays.

    Source: Flow-OPD v5, arXiv 2605.08063; DiffusionOPD, arXiv 2605.15055 (ODE limit).
    """

    def __init__(self, target: VelocityField, dynamics: Dynamics, *, name: str) -> None:
        """Takes the target field, the dynamics of the walk and the name of the metric."""
        self.target = target
        self.dynamics = dynamics
        self.name = name

    def __call__(self, velocity: Tensor, batch: TransitionBatch | ImageBatch) -> LossOutput:
        """Returns the KL at the batch's states, summed over rows; the target gets no gradient."""
        assert isinstance(batch, TransitionBatch), "a transition KL needs transitions"
        with torch.no_grad():
            target = self.target.velocity(batch.latents, batch.sigma, batch.conditioning)
        grid = (batch.sigma, batch.sigma_next, batch.noise_level)
        ours = self.dynamics(batch.latents, velocity, *grid)
        theirs = self.dynamics(batch.latents, target, *grid)
        kl = (transition_kl(ours, theirs) / velocity[0].numel()).sum()
        return LossOutput(kl, len(batch), {self.name: float(kl.detach())})
