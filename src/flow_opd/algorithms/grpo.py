"""Flow-GRPO: one teacher on its own reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flow_opd.objectives.policy_gradient import ClippedPolicyGradient
from flow_opd.objectives.transition_kl import TransitionKL
from flow_opd.objectives.weighted import WeightedTerms
from flow_opd.protocols import Backbone, BatchSource, Scorer, Term, VelocityField
from flow_opd.rollout.groups import GroupRollouts
from flow_opd.rollout.walks import Walks


def flow_grpo(
    student: VelocityField,
    reference: VelocityField,
    backbone: Backbone,
    walks: Walks,
    scorer: Scorer,
    *,
    group_size: int,
    shared_start: bool,
    steps_of_round: Callable[[int], Sequence[int]],
    drawn_from: Sequence[int],
    balanced_steps: bool,
    updates_per_round: int,
    clip_range: float,
    advantage_clip: float,
    kl_weight: float,
) -> tuple[BatchSource, WeightedTerms]:
    """Returns rollouts with group-relative advantages, and PPO's clip + beta KL(student || reference).

    The numbers mean what `TeacherSettings` says.

    Source: Flow-GRPO, arXiv 2505.05470, equations 4 and 5.
    """
    source = GroupRollouts(
        student,
        backbone,
        walks,
        scorer,
        group_size=group_size,
        shared_start=shared_start,
        steps_of_round=steps_of_round,
        drawn_from=drawn_from,
        balanced_steps=balanced_steps,
        updates_per_round=updates_per_round,
    )
    gradient = ClippedPolicyGradient(walks.dynamics, clip_range=clip_range, advantage_clip=advantage_clip)
    terms: list[tuple[float, Term]] = [(1.0, gradient)]
    if kl_weight > 0:
        terms.append((kl_weight, TransitionKL(reference, walks.dynamics, name="reference_kl")))
    return source, WeightedTerms(student, terms)
