"""What is minimised: velocity matching, distances to other fields, the clipped policy gradient, their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_opd.errors import ConfigError
from flow_opd.flow.dynamics import log_prob_mean
from flow_opd.flow.path import target_velocity
from flow_opd.method.joint import FieldShare, joint_velocities, velocity_of_states, whole_share
from flow_opd.method.routing import RoutedTeachers
from flow_opd.protocols import Backbone, Dynamics, Term, VelocityField
from flow_opd.types import ImageBatch, LossOutput, TransitionBatch


class WeightedTerms:
    """L = sum_i weight_i term_i(v_student, batch): OPD + lambda MAR, PPO + beta KL, or a single term."""

    def __init__(self, student: VelocityField, terms: Sequence[tuple[float, Term]]) -> None:
        """Joins the student with the terms, [(weight, term)]."""
        self.student = student
        self.terms = list(terms)

    def __call__(self, batch: TransitionBatch | ImageBatch) -> LossOutput:
        """Returns the loss summed over the rows; the student runs once, or not at all if it already has.

        Metrics are sums over rows under the terms' own names, unweighted.
        """
        velocity = batch.velocity
        if velocity is None:
            state_ids = batch.state_ids if isinstance(batch, TransitionBatch) else None
            velocity = velocity_of_states(
                self.student, batch.latents, batch.sigma, batch.conditioning, state_ids
            )
        total = torch.zeros((), device=velocity.device)
        metrics: dict[str, Tensor] = {}
        for weight, term in self.terms:
            output = term(velocity, batch)
            assert output.count == len(batch), f"{term.name} counted {output.count} of {len(batch)} rows"
            total = total + weight * output.total
            metrics.update(output.metrics)
        return LossOutput(total, len(batch), {"loss": total.detach(), **metrics})


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


@dataclass(frozen=True)
class Target:
    """A field that the student's velocity is pulled to.

    Evaluated at a share p of the states, each drawn with the same probability, it is weighted by 1 / p there:

        E[sum over the drawn states of loss / p] = sum over all states of loss

    so loss and gradient keep their expectation, and only their variance grows.

    Source: the estimator of Horvitz and Thompson (1952); docs/LOG.md, entry 10, has what it costs.
    """

    name: str  # of the metric
    field: VelocityField
    weight: float = 1.0  # of its loss: 1 for teachers, lambda for the anchor, beta for a reference
    share: float = 1.0  # of the states at which it is evaluated, in (0, 1]; weighted by 1 / share

    def shares(self, batch: TransitionBatch) -> list[FieldShare]:
        """Returns what the target is made of at the states where it is evaluated."""
        if isinstance(self.field, RoutedTeachers):
            assert self.share == 1.0, "teachers are evaluated at every state"
            return self.field.shares(batch.conditioning)
        return whole_share(self.field, torch.nonzero(self.asked(batch)).flatten())

    def asked(self, batch: TransitionBatch) -> Tensor:
        """Returns at which states it is evaluated, [M], bool, on the CPU."""
        if self.share == 1.0:
            return torch.ones(len(batch), dtype=torch.bool)
        assert batch.order is not None, "a share of the states needs their random order"
        return batch.order < self.share


@dataclass(frozen=True)
class OPDPolicies:
    """The velocity fields that take part, and the base that they share."""

    backbone: Backbone
    student: VelocityField
    teachers: VelocityField  # routed
    anchor: Target | None
    """MAR, on every prompt: lambda E w(sigma) |v_student - v_anchor|^2 (Flow-OPD, arXiv 2605.08063)."""


Distance = Callable[[Tensor, Tensor, TransitionBatch], Tensor]
"""(student's velocities, the target's, both [M, C, H, W], the batch) -> how far apart they are, [M], >= 0."""


def squared_distance(student: Tensor, target: Tensor, batch: TransitionBatch) -> Tensor:
    """Returns |v_student - v_target|^2 / D at each row, [M]; D is the number of latent dimensions."""
    return (student - target).flatten(1).pow(2).mean(1)


class VelocityGap:
    """weight(sigma) |v_student - v_target|^2 at the visited states, for one target or several.

        loss = sum_targets weight_target sum_rows weight(sigma) |v_student - v_target|^2 / D

    With the transition weights (`flow.weights`) it is the KL of the student's step to the target's,
    |mean_student - mean_target|^2 / (2 std^2), differentiated in the velocity. All targets are evaluated
    in one pass.

    Differs: divided by the number of latent dimensions D, as the log-ratio of the policy gradient is, so
    that learning rates and clip norms carry over between resolutions. The KL's factor |dsigma| stays.

    Source: Flow-OPD v5, arXiv 2605.08063 (transition KL and MAR); DiffusionOPD, arXiv 2605.15055.
    """

    name = "velocity_gap"

    def __init__(self, targets: Sequence[Target], distance: Distance = squared_distance) -> None:
        """Takes the targets, whose names are those of the metrics, and what is measured to them."""
        self.targets = list(targets)
        self.distance = distance

    def __call__(self, velocity: Tensor, batch: TransitionBatch | ImageBatch) -> LossOutput:
        """Returns the loss at the batch's states, summed over rows; targets get no gradient.

        Metrics are each target's loss, not multiplied by the target's weight.
        """
        assert isinstance(batch, TransitionBatch), "a distance to a field needs transitions"
        assert batch.weight is not None, "a distance needs the weights of its states"
        shares = [target.shares(batch) for target in self.targets]
        fields = joint_velocities(shares, batch.latents, batch.sigma, batch.conditioning)
        total = torch.zeros((), device=velocity.device)
        metrics: dict[str, Tensor] = {}
        for target, field in zip(self.targets, fields, strict=True):
            counted = batch.weight
            if target.share < 1.0:
                counted = counted * (target.asked(batch).to(counted) / target.share)
            far = self.distance(velocity, field, batch)
            if far.shape != counted.shape or (velocity.requires_grad and not far.requires_grad):
                name = getattr(self.distance, "__name__", type(self.distance).__name__)
                raise ConfigError(
                    f"an objective that cannot be trained on: {name}",
                    value=f"shape {list(far.shape)}, with gradient: {far.requires_grad}",
                    allowed=f"a number for each row, [{len(batch)}], with the gradient of the student",
                    fix="take the mean over all dimensions but the first, and detach nothing of the student",
                )
            gap = (counted * far).sum()
            total = total + target.weight * gap
            metrics[target.name] = gap.detach()
        return LossOutput(total, len(batch), metrics)


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
