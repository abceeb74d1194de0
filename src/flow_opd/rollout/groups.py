"""Groups of images for each prompt, scored: the source of Flow-GRPO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flow_opd.flow.advantages import group_advantages
from flow_opd.flow.schedule import without_noise
from flow_opd.protocols import Backbone, Scorer, VelocityField
from flow_opd.rollout.sampler import Repeatable, WalkNoise, micro_rows, rollout
from flow_opd.rollout.transitions import (
    balanced_weights,
    join_rollouts,
    shares_of_updates,
    transitions,
)
from flow_opd.rollout.walk_batches import Walks
from flow_opd.types import Conditioning, Prompt, Rollout, Schedule, TransitionBatch


@dataclass(frozen=True)
class GroupSampling:
    """How the images of a round are drawn and which of their steps are trained."""

    group_size: int  # images per prompt
    steps_of_round: Callable[[int], Sequence[int]]  # round -> stochastic steps that enter the update
    shared_start: bool = False  # whether the images of a group start from the same noise
    drawn_from: Sequence[int] = ()
    """Steps that the choice of `steps_of_round` is made from; those that were not chosen walk without noise,
    so that a reward is owed to the steps that it trains."""
    balanced_steps: bool = False  # whether advantages are weighed by `balanced_weights`
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
    def readings(self) -> Mapping[str, float]:
        """Mean reward of the round, its spread within groups, and the share of groups without spread."""
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
        rewards = self.walks.processes.gather_rows(torch.cat([reward for _, reward in parts]), len(prompts))
        groups = torch.arange(len(prompts)) // self.sampling.group_size
        advantages = group_advantages(rewards, groups)[list(own)]
        spread = rewards.view(-1, self.sampling.group_size).std(1, correction=0)
        self._readings = {
            "reward": float(rewards.mean()),
            "reward_spread": float(spread.mean()),
            "silent_groups": float((spread < 1e-6).float().mean()),
        }
        joined = join_rollouts([part for part, _ in parts])
        dense = advantages[:, None].expand(-1, len(joined.schedule))
        if self.sampling.balanced_steps:
            dense = dense * balanced_weights(joined.schedule, self.walks.dynamics, steps)
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
    ) -> tuple[Rollout, Tensor]:
        chosen = [prompts[row] for row in rows]
        drawn = rollout(
            self.student,
            conditioning.rows([row // self.sampling.group_size for row in rows]),
            chosen,
            schedule=schedule,
            dynamics=self.walks.dynamics,
            noise=WalkNoise(
                self.backbone.latent_shape,
                schedule,
                [self.walks.seeder(index, row) for row in rows],
                self.backbone.device,
                starts=self._starts(index, rows) if self.sampling.shared_start else None,
            ),
        )
        return drawn, self.scorer.score(self.backbone.decode_latents(drawn.x0).cpu(), chosen).total

    def _starts(self, index: int, rows: range) -> list[torch.Generator]:
        """Returns generators, [B], seeded by group below 0, where no trajectory has its number."""
        return [self.walks.seeder(index, -1 - row // self.sampling.group_size) for row in rows]
