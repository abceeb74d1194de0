"""Flow matching on images: pretraining, and the SFT cold start."""

from __future__ import annotations

from torch import Tensor

from flow_opd.flow.path import target_velocity
from flow_opd.types import ImageBatch, LossOutput, TransitionBatch


class VelocityMatching:
    """|v_student - (eps - x0)|^2, a mean over latent dimensions and a sum over rows.

    Source: Lipman et al., arXiv 2210.02747; Stable Diffusion 3, arXiv 2403.03206.
    """

    name = "velocity_matching"

    def __call__(self, velocity: Tensor, batch: TransitionBatch | ImageBatch) -> LossOutput:
        """Returns the loss of the student's velocity, [M, C, H, W]."""
        assert isinstance(batch, ImageBatch), "velocity matching needs clean latents"
        error = (velocity - target_velocity(batch.x0, batch.noise)).flatten(1).pow(2).mean(1).sum()
        return LossOutput(error, len(batch), {self.name: error.detach()})
