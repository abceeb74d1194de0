"""Flow-GRPO: one teacher on its own reward, or GRPO-Mix: one policy on the rewards of several tasks."""

from __future__ import annotations

from functools import partial

import torch

from flow_opd.config.teacher import GRPOConfig
from flow_opd.flow.advantages import NORMALIZATIONS
from flow_opd.method.groups import GroupRollouts, GroupSampling
from flow_opd.method.objectives import ClippedPolicyGradient, Target, VelocityGap, WeightedTerms
from flow_opd.method.walk import Walks
from flow_opd.protocols import Backbone, BatchSource, Scorer, Term, VelocityField
from flow_opd.seeding import generator


def flow_grpo(
    student: VelocityField,
    reference: VelocityField,
    backbone: Backbone,
    walks: Walks,
    scorer: Scorer,
    sampling: GroupSampling,
    *,
    clip_range: float,
    kl_weight: float,
) -> tuple[BatchSource, WeightedTerms]:
    """Returns rollouts with group-relative advantages, and PPO's clip + beta KL(student || reference).

    Args:
        student: the policy that is trained.
        reference: policy of the KL penalty, the bare base.
        backbone: decodes images.
        walks: how the student walks.
        scorer: the rewards, each for the prompts of its tasks.
        sampling: how groups are drawn, how their scores become advantages, and which steps are trained.
        clip_range: PPO's clip of the ratio, whose log is a mean over latent dimensions.
        kl_weight: beta; 0 leaves the KL out, and the reference is not evaluated.

    Source: Flow-GRPO, arXiv 2505.05470, equations 4 and 5; GRPO-Mix is the baseline of Flow-OPD, arXiv
    2605.08063.
    """
    source = GroupRollouts(student, backbone, walks, scorer, sampling)
    gradient = ClippedPolicyGradient(walks.dynamics, clip_range=clip_range)
    terms: list[tuple[float, Term]] = [(1.0, gradient)]
    if kl_weight > 0:
        terms.append((1.0, VelocityGap([Target("reference_kl", reference, weight=kl_weight)])))
    return source, WeightedTerms(student, terms)


def grpo(
    config: GRPOConfig,
    student: VelocityField,
    reference: VelocityField,
    backbone: Backbone,
    walks: Walks,
    scorer: Scorer,
    *,
    seed: int,
) -> tuple[BatchSource, WeightedTerms]:
    """Returns where batches come from and what is minimised, by `config`; `seed` draws a round's steps."""
    sampling = GroupSampling(
        group_size=config.group_size,
        shared_start=config.shared_start,
        steps_of_round=partial(_steps_of_round, config, seed),
        drawn_from=range(*config.trained_range()),
        advantages=partial(
            NORMALIZATIONS[config.reward_normalization],
            round_spread=config.advantage_spread == "round",
        ),
        advantage_clip=config.advantage_clip,
        state_weights=config.state_weights.build(config.sampling.noise_level),
        updates_per_round=config.updates_per_round,
    )
    clip_range, kl_weight = config.clip_range, config.kl_weight
    return flow_grpo(
        student, reference, backbone, walks, scorer, sampling, clip_range=clip_range, kl_weight=kl_weight
    )


def _steps_of_round(config: GRPOConfig, seed: int, index: int) -> list[int]:
    """Returns the trained steps of a round: all of them, or a random choice, in order."""
    steps = list(range(*config.trained_range()))
    count = config.steps_per_round or len(steps)
    order = torch.randperm(len(steps), generator=generator(seed, "steps", index))
    return sorted(steps[place] for place in order[:count].tolist())
