"""Multi-teacher on-policy distillation, by the direct KL or by policy gradient, with or without MAR."""

from __future__ import annotations

from flow_opd.config.distill import DistillConfig
from flow_opd.config.objectives import DirectKLSettings
from flow_opd.errors import ConfigError
from flow_opd.method.corrections import CorrectedRollouts, Correction
from flow_opd.method.objectives import (
    ClippedPolicyGradient,
    Distance,
    OPDPolicies,
    Target,
    VelocityGap,
    WeightedTerms,
    squared_distance,
)
from flow_opd.method.walk import WalkBatches, Walks
from flow_opd.protocols import BatchSource, Term


def direct_opd(
    policies: OPDPolicies, walks: Walks, distance: Distance = squared_distance
) -> tuple[BatchSource, WeightedTerms]:
    """Returns the fused walk, and the loss to the routed teachers + lambda times that to the anchor."""
    source = WalkBatches(policies.student, policies.backbone, walks)
    targets = [Target("teacher_gap", policies.teachers)]
    if policies.anchor is not None:
        targets.append(policies.anchor)
    return source, WeightedTerms(policies.student, [(1.0, VelocityGap(targets, distance))])


def policy_gradient_opd(
    policies: OPDPolicies,
    walks: Walks,
    correction: Correction,
    *,
    updates_per_round: int,
    clip_range: float,
    advantage_clip: float,
) -> tuple[BatchSource, WeightedTerms]:
    """Returns rollouts with the teachers' advantages, and PPO's clip + lambda KL(student || anchor)."""
    source = CorrectedRollouts(
        policies.student,
        policies.teachers,
        policies.backbone,
        walks,
        correction,
        advantage_clip=advantage_clip,
        updates_per_round=updates_per_round,
    )
    gradient = ClippedPolicyGradient(walks.dynamics, clip_range=clip_range)
    terms: list[tuple[float, Term]] = [(1.0, gradient)]
    if policies.anchor is not None:
        terms.append((1.0, VelocityGap([policies.anchor])))
    return source, WeightedTerms(policies.student, terms)


def distillation(
    config: DistillConfig, policies: OPDPolicies, walks: Walks, distance: Distance | None = None
) -> tuple[BatchSource, WeightedTerms]:
    """Returns where batches come from and what is minimised, by the objective of `config`.

    Raises:
        ConfigError: if a policy gradient has a distance of one's own, or an anchor with a share of the
            states.
    """
    objective = config.objective
    if distance is not None:
        if not isinstance(objective, DirectKLSettings):
            raise ConfigError(
                f"a distance of velocities beside the objective {objective.name!r}",
                value=getattr(distance, "__name__", distance),
                allowed="the objective 'direct-kl' beside it",
                fix="leave one of the two out",
            )
        return direct_opd(policies, walks, distance)
    if objective.by_policy_gradient and policies.anchor is not None and policies.anchor.share < 1:
        raise ConfigError(
            f"objective {objective.name!r} evaluates the anchor at every state",
            value=policies.anchor.share,
            allowed="1",
            fix="leave its share out, or choose the objective 'direct-kl'",
        )
    return objective.build(policies, walks)
