"""The direct (pathwise) pull towards target fields: teachers, anchor, reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_opd.policies.joint import FieldShare, joint_velocities, whole_share
from flow_opd.policies.routed import RoutedTeachers
from flow_opd.protocols import VelocityField
from flow_opd.types import ImageBatch, LossOutput, TransitionBatch


@dataclass(frozen=True)
class Target:
    """A field that the student's velocity is pulled to.

    Asked at a share p of the states, each drawn with the same probability, it counts 1 / p there:

        E[sum_asked gap / p] = sum_all gap

    so loss and gradient keep their expectation, and only their variance grows.

    Source: the estimator of Horvitz and Thompson (1952); docs/LOG.md, entry 10, has what it costs.
    """

    name: str  # of the metric
    field: VelocityField
    weight: float = 1.0  # of its gap in the loss: 1 for teachers, lambda for the anchor, beta for a reference
    share: float = 1.0  # of the states at which it is asked, in (0, 1]; those count 1 / share

    def shares(self, batch: TransitionBatch) -> list[FieldShare]:
        """Returns what the target is made of at the states where it is asked."""
        if isinstance(self.field, RoutedTeachers):
            assert self.share == 1.0, "teachers are asked everywhere"
            return self.field.shares(batch.conditioning)
        return whole_share(self.field, torch.nonzero(self.asked(batch)).flatten())

    def asked(self, batch: TransitionBatch) -> Tensor:
        """Returns at which states it is asked, [M], bool, on the CPU."""
        if self.share == 1.0:
            return torch.ones(len(batch), dtype=torch.bool)
        assert batch.rank is not None, "a share of the states needs their random order"
        return batch.rank < self.share


class VelocityGap:
    """weight(sigma) |v_student - v_target|^2 at the visited states, for one target or several.

        loss = sum_targets weight_target sum_rows weight(sigma) |v_student - v_target|^2 / D

    With the transition weights (`flow.weights`) it is the KL of the student's step to the target's,
    |mean_student - mean_target|^2 / (2 std^2), differentiated in the velocity. All targets answer in one
    pass.

    Differs: divided by the number of latent dimensions D, as the log-ratio of the policy gradient is, so
    that learning rates and clip norms carry over between resolutions. The KL's factor |dsigma| stays.

    Source: Flow-OPD v5, arXiv 2605.08063 (transition KL and MAR); DiffusionOPD, arXiv 2605.15055.
    """

    name = "velocity_gap"

    def __init__(self, targets: Sequence[Target]) -> None:
        """Takes the targets, whose names are those of the metrics."""
        self.targets = list(targets)

    def __call__(self, velocity: Tensor, batch: TransitionBatch | ImageBatch) -> LossOutput:
        """Returns the loss at the batch's states, summed over rows; targets get no gradient.

        Metrics are each target's gap, not multiplied by the target's weight.
        """
        assert isinstance(batch, TransitionBatch), "a gap to a field needs transitions"
        assert batch.weight is not None, "a gap needs the weights of its states"
        shares = [target.shares(batch) for target in self.targets]
        fields = joint_velocities(shares, batch.latents, batch.sigma, batch.conditioning)
        total = torch.zeros((), device=velocity.device)
        metrics: dict[str, Tensor] = {}
        for target, field in zip(self.targets, fields, strict=True):
            counted = batch.weight
            if target.share < 1.0:
                counted = counted * (target.asked(batch).to(counted) / target.share)
            gap = (counted * (velocity - field).flatten(1).pow(2).mean(1)).sum()
            total = total + target.weight * gap
            metrics[target.name] = gap.detach()
        return LossOutput(total, len(batch), metrics)
