"""Multi-teacher on-policy distillation, by the direct KL or by policy gradient, with or without MAR."""

from __future__ import annotations

from dataclasses import dataclass

from flow_opd.objectives.policy_gradient import ClippedPolicyGradient
from flow_opd.objectives.transition_kl import TransitionKL
from flow_opd.objectives.weighted import WeightedTerms
from flow_opd.protocols import Backbone, BatchSource, Dynamics, Term, VelocityField
from flow_opd.rollout.corrections import CORRECTIONS, CorrectedRollouts
from flow_opd.rollout.walk_batches import WalkBatches, Walks


@dataclass(frozen=True)
class OPDPolicies:
    """The velocity fields that take part, and the base that they share."""

    backbone: Backbone
    student: VelocityField
    teachers: VelocityField  # routed
    anchor: VelocityField | None
    anchor_weight: float  # lambda of MAR

    def anchor_terms(self, dynamics: Dynamics) -> list[tuple[float, Term]]:
        """Returns MAR, on every prompt: lambda E w(sigma) |v_student - v_anchor|^2.

        Source: Flow-OPD, arXiv 2605.08063 (manifold anchor regularization).
        """
        if self.anchor is None:
            return []
        return [(self.anchor_weight, TransitionKL(self.anchor, dynamics, name="anchor_kl"))]


def direct_opd(policies: OPDPolicies, walks: Walks) -> tuple[BatchSource, WeightedTerms]:
    """Returns the fused walk, and KL(student || routed teachers) + lambda KL(student || anchor)."""
    source = WalkBatches(policies.student, policies.backbone, walks)
    teachers = TransitionKL(policies.teachers, walks.dynamics, name="teacher_kl")
    return source, WeightedTerms(policies.student, [(1.0, teachers), *policies.anchor_terms(walks.dynamics)])


def policy_gradient_opd(
    policies: OPDPolicies,
    walks: Walks,
    *,
    correction: str,
    updates_per_round: int,
    clip_range: float,
    advantage_clip: float,
) -> tuple[BatchSource, WeightedTerms]:
    """Returns rollouts weighed by the teachers, and PPO's clip + lambda KL(student || anchor)."""
    source = CorrectedRollouts(
        policies.student,
        policies.teachers,
        policies.backbone,
        walks,
        CORRECTIONS.get(correction),
        advantage_clip=advantage_clip,
        updates_per_round=updates_per_round,
    )
    gradient = ClippedPolicyGradient(walks.dynamics, clip_range=clip_range)
    return source, WeightedTerms(policies.student, [(1.0, gradient), *policies.anchor_terms(walks.dynamics)])
