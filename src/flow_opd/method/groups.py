"""Groups of images for each prompt, scored: the source of Flow-GRPO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flow_opd.flow.advantages import RoundScores, advantages_of_the_sum
from flow_opd.flow.path import without_noise
from flow_opd.flow.weights import StateWeights, transition_weights
from flow_opd.method.rollouts import Repeatable, WalkNoise, micro_rows, rollout
from flow_opd.method.transitions import (
    advantage_weights,
    join_rollouts,
    shares_of_updates,
    transitions,
)
from flow_opd.method.walk import Walks
from flow_opd.protocols import Backbone, Scorer, VelocityField
from flow_opd.types import Conditioning, Prompt, RewardTable, Rollout, Schedule, TransitionBatch


@dataclass(frozen=True)
class GroupSampling:
    """How the images of a round are drawn and which of their steps are trained."""

    group_size: int  # images per prompt
    steps_of_round: Callable[[int], Sequence[int]]  # round -> stochastic steps that enter the update
    shared_start: bool = False  # whether the images of a group start from the same noise
    drawn_from: Sequence[int] = ()
    """Steps that the choice of `steps_of_round` is made from; those that were not chosen are deterministic,
    so that differences in reward come from the trained steps alone."""
    advantages: Callable[[RoundScores], Tensor] = advantages_of_the_sum
    advantage_clip: float = 5.0  # advantages are cut to this size, before they are weighed
    state_weights: StateWeights = transition_weights  # how much each trained step counts, `advantage_weights`
    updates_per_round: int = 1  # optimizer steps that share the images


class GroupRollouts:
    """Rollouts of the current policy with group-relative advantages, split into the round's updates."""

    def __init__(
        self,
        student: VelocityField,
        backbone: Backbone,
        walks: Walks,
        scorer: Scorer,
        sampling: GroupSampling,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            student: the policy that is trained, and the behaviour policy of its own rollouts.
            backbone: decodes images.
            walks: how to walk; each prompt of a round starts a group.
            scorer: the teacher's reward.
            sampling: how many images, from which noise, and what of them is trained.
        """
        self.student = student
        self.backbone = backbone
        self.walks = walks
        self.scorer = scorer
        self.sampling = sampling
        self._readings: dict[str, float] = {}

    @property
    def metrics(self) -> Mapping[str, float]:
        """Mean reward of the round, its spread within groups, the share of groups without spread, and the
        mean of each reward over the images that it judged, where there were any."""
        return self._readings

    def round(self, index: int) -> Iterator[Repeatable[TransitionBatch]]:
        """Yields the updates of round `index`."""
        asked = self.walks.prompts_of_round(index)
        with torch.no_grad():
            conditioning = self.walks.encoder.encode_prompts(asked)  # once for a whole group
        prompts = [prompt for prompt in asked for _ in range(self.sampling.group_size)]
        steps = self.sampling.steps_of_round(index)
        schedule = without_noise(self.walks.schedule, set(self.sampling.drawn_from) - set(steps))
        own = self.walks.processes.rows(len(prompts))
        parts = [
            self._collect(index, prompts, conditioning, own[part.start : part.stop], schedule)
            for part in micro_rows(len(own), self.walks.micro_batch_size)
        ]
        scores = self._gather([table for _, table in parts], prompts)
        self._readings = _readings(scores, list(parts[0][1].scores), self.sampling.group_size)
        clip = self.sampling.advantage_clip
        advantages = self.sampling.advantages(scores)[list(own)].clamp(-clip, clip)
        joined = join_rollouts([part for part, _ in parts])
        dense = advantages[:, None] * advantage_weights(
            joined.schedule, self.walks.dynamics, steps, self.sampling.state_weights
        )
        for share in shares_of_updates(own, len(prompts), self.sampling.updates_per_round):
            yield Repeatable(
                partial(
                    transitions,
                    joined,
                    dense.to(joined.latents.device),
                    weights=self.walks.state_weights(joined.schedule, self.walks.dynamics),
                    rows=share,
                    steps=steps,
                    micro_batch_size=self.walks.micro_batch_size,
                )
            )

    def _collect(
        self, index: int, prompts: list[Prompt], conditioning: Conditioning, rows: range, schedule: Schedule
    ) -> tuple[Rollout, RewardTable]:
        chosen = [prompts[row] for row in rows]
        groups = tuple(row // self.sampling.group_size for row in rows)
        drawn = rollout(
            self.student,
            conditioning.rows(groups),
            chosen,
            schedule=schedule,
            dynamics=self.walks.dynamics,
            noise=WalkNoise(
                self.backbone.latent_shape,
                schedule,
                [self.walks.seeder(index, row) for row in rows],
                self.backbone.device,
                starts=self._starts(index, groups) if self.sampling.shared_start else None,
            ),
            starts=groups if self.sampling.shared_start else None,
        )
        return drawn, self.scorer.score(self.backbone.decode_latents(drawn.x0).cpu(), chosen)

    def _gather(self, parts: list[RewardTable], prompts: list[Prompt]) -> RoundScores:
        """Returns the scores of all images of the round, from the tables of this process's own."""
        judged = torch.cat([torch.stack([one.valid for one in part.scores.values()], 1) for part in parts])
        values = torch.cat([torch.stack([one.values for one in part.scores.values()], 1) for part in parts])
        own = torch.stack([torch.where(judged, values, 0.0), judged.float()])
        everyone = self.walks.processes.gather_rows(own.transpose(0, 1), len(prompts))
        tasks = sorted({prompt.task for prompt in prompts})
        return RoundScores(
            values=everyone[:, 0],
            judged=everyone[:, 1] > 0,
            weights=torch.tensor(list(parts[0].weights.values())),
            groups=torch.arange(len(prompts)) // self.sampling.group_size,
            tasks=torch.tensor([tasks.index(prompt.task) for prompt in prompts]),
        )

    def _starts(self, index: int, groups: Sequence[int]) -> list[torch.Generator]:
        """Returns generators, [B], seeded by group below 0, where no trajectory has its number."""
        return [self.walks.seeder(index, -1 - group) for group in groups]


def _readings(scores: RoundScores, names: Sequence[str], group_size: int) -> dict[str, float]:
    spread = scores.totals.view(-1, group_size).std(1, correction=0)
    means = {
        f"reward/{name}": float(values[judged].mean())
        for name, values, judged in zip(names, scores.values.T, scores.judged.T, strict=True)
        if bool(judged.any())
    }
    return {
        "reward": float(scores.totals.mean()),
        **means,
        "reward_spread": float(spread.mean()),
        "silent_groups": float((spread < 1e-6).float().mean()),
    }
