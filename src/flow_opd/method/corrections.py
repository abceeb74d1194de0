"""Rollouts whose advantages come from the teachers: distillation by policy gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from flow_opd.flow.dynamics import log_prob_mean, transition_kl
from flow_opd.method.rollouts import Repeatable, WalkNoise, micro_rows, rollout, steps_with_density
from flow_opd.method.transitions import join_rollouts, shares_of_updates, transitions
from flow_opd.method.walk import Walks
from flow_opd.protocols import Backbone, VelocityField
from flow_opd.types import Prompt, Rollout, StepDistribution, TransitionBatch


class Correction(Protocol):
    """What a teacher says about one sampled step."""

    def __call__(self, student: StepDistribution, teacher: StepDistribution, next_latents: Tensor) -> Tensor:
        """Returns the advantage of each row, [M], without gradient."""
        ...


def sampled_log_ratio(student: StepDistribution, teacher: StepDistribution, next_latents: Tensor) -> Tensor:
    """Returns log pi_teacher(a) - log pi_student(a) of the action taken, plus the transition KL, [M].

    The log-ratio, summed over dimensions, has minus the KL as its expectation under the student. The KL
    of the state is added back as a baseline: it does not depend on the action, so the expected gradient
    stays minus the KL's gradient, while the advantage is centred and an advantage clip keeps its sign.
    Without it a large KL drives every advantage into the clip, where it says nothing about the action.
    Under the student the result is N(0, 2 KL): see `clip_advantages`.

    Differs: the baseline is ours; any function of the state may be one (Williams, 1992).

    Source: the policy gradient of the reverse KL; for sequences MiniLLM, arXiv 2306.08543.
    """
    dimensions = next_latents[0].numel()
    ratio = log_prob_mean(teacher, next_latents) - log_prob_mean(student, next_latents)
    return dimensions * ratio + transition_kl(student, teacher)


def detached_state_kl(student: StepDistribution, teacher: StepDistribution, next_latents: Tensor) -> Tensor:
    """Returns minus the transition KL at the state, [M]: a negative control that does not learn.

    The advantage does not depend on the action, so E[A grad log pi] = A E[grad log pi] = 0: the
    expected gradient at the behaviour policy is exactly zero.

    Source: Flow-OPD v1, arXiv 2605.08063, as written there.
    """
    return -transition_kl(student, teacher)


def clip_advantages(advantages: Tensor, kl: Tensor, clip: float) -> Tensor:
    """Returns the advantages clipped to `clip` standard deviations of the log-ratio at their state, [M].

        |A| <= clip sqrt(2 KL)

    Let d = (mean_student - mean_teacher) / std, so KL = |d|^2 / 2. The action is mean_student + std z with z
    standard normal, so log pi_teacher - log pi_student = (|z|^2 - |z + d|^2) / 2 = -z d - KL: plus the KL it
    is N(0, 2 KL), in any number of dimensions. As E clip(z) z = P(|z| < clip) for a standard normal number,
    a clip of 1 keeps 68 % of the expected gradient and one of 3 keeps 99.7 %, whatever the KL and the
    resolution. Differs: the clip is not in nats, of which one of 5 keeps 34 % at a KL of 1e-3 in each of
    65,536 dimensions, and less in more.

    Source: derived here; tests/method/test_corrections.py has the shares.

    Args:
        advantages: [M].
        kl: transition KL at the states, summed over dimensions, [M].
        clip: in standard deviations, > 0.
    """
    limit = clip * (2 * kl).sqrt()
    return advantages.clamp(-limit, limit)


class CorrectedRollouts:
    """Rollouts of the student; the routed teacher gives each stochastic step its advantage."""

    def __init__(
        self,
        student: VelocityField,
        teachers: VelocityField,
        backbone: Backbone,
        walks: Walks,
        correction: Correction,
        *,
        advantage_clip: float,
        updates_per_round: int,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            student: the policy that is trained.
            teachers: the routed teachers.
            backbone: says what latents look like.
            walks: how to walk; all steps with a density are trained.
            correction: turns a step of both into an advantage.
            advantage_clip: advantages are clipped to so many standard deviations (`clip_advantages`).
            updates_per_round: optimizer steps that share the trajectories.
        """
        self.student = student
        self.teachers = teachers
        self.backbone = backbone
        self.walks = walks
        self.correction = correction
        self.advantage_clip = advantage_clip
        self.updates_per_round = updates_per_round
        self.trained_steps = steps_with_density(walks.schedule, walks.dynamics)
        self._readings: dict[str, float] = {}

    @property
    def metrics(self) -> Mapping[str, float]:
        """teacher_kl: the round's mean transition KL per latent dimension, over the trained steps."""
        return self._readings

    def round(self, index: int) -> Iterator[Repeatable[TransitionBatch]]:
        """Yields the updates of round `index`, each over its own share of the trajectories."""
        prompts = self.walks.prompts_of_round(index)
        own = self.walks.processes.rows(len(prompts))
        parts = [
            self._collect(index, [prompts[row] for row in rows], rows)
            for rows in (
                own[part.start : part.stop] for part in micro_rows(len(own), self.walks.micro_batch_size)
            )
        ]
        joined = join_rollouts([part for part, _, _ in parts])
        advantages = torch.cat([part for _, part, _ in parts])
        divergence = self.walks.processes.gather_rows(torch.cat([part for _, _, part in parts]), len(prompts))
        self._readings = {"teacher_kl": float(divergence[:, self.trained_steps].mean())}
        for share in shares_of_updates(own, len(prompts), self.updates_per_round):
            yield Repeatable(
                partial(
                    transitions,
                    joined,
                    advantages,
                    weights=self.walks.weights(),
                    rows=share,
                    steps=self.trained_steps,
                    micro_batch_size=self.walks.micro_batch_size,
                )
            )

    @torch.no_grad()
    def _collect(self, index: int, prompts: list[Prompt], rows: range) -> tuple[Rollout, Tensor, Tensor]:
        """Returns the trajectories `rows` of the round, their advantages and their KLs, each [B, T]."""
        drawn = rollout(
            self.student,
            self.walks.encoder.encode_prompts(prompts),
            prompts,
            schedule=self.walks.schedule,
            dynamics=self.walks.dynamics,
            noise=WalkNoise(
                self.backbone.latent_shape,
                self.walks.schedule,
                [self.walks.seeder(index, row) for row in rows],
                self.backbone.device,
            ),
        )
        advantages = torch.zeros(len(prompts), len(self.walks.schedule), device=drawn.latents.device)
        divergence = torch.zeros_like(advantages)
        whole = range(len(prompts))
        for step in self.trained_steps:
            for batch in transitions(
                drawn,
                advantages,
                weights=self.walks.weights(),
                rows=whole,
                steps=[step],
                micro_batch_size=len(prompts),
            ):
                advantages[:, step], divergence[:, step] = self._judge(batch)
        return drawn, advantages, divergence

    def _judge(self, batch: TransitionBatch) -> tuple[Tensor, Tensor]:
        """Returns the advantage and the transition KL per latent dimension of each row, [M]."""
        assert batch.next_latents is not None
        grid = (batch.sigma, batch.sigma_next, batch.noise_level)
        here = (batch.latents, batch.sigma, batch.conditioning)
        student = self.walks.dynamics(batch.latents, self.student.velocity(*here), *grid)
        teacher = self.walks.dynamics(batch.latents, self.teachers.velocity(*here), *grid)
        kl = transition_kl(student, teacher)
        advantages = self.correction(student, teacher, batch.next_latents)
        return clip_advantages(advantages, kl, self.advantage_clip), kl / batch.latents[0].numel()
