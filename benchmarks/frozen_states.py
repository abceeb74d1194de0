"""How far a student is from its teachers, at states that the teachers visit and that never change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from official_update import OfficialSchedule
from torch import Tensor

from flow_opd.protocols import VelocityField
from flow_opd.seeding import generator
from flow_opd.types import Prompt


class FrozenStates:
    """States of the teachers' own walks for held-out prompts, with the velocity of each prompt's teacher."""

    @torch.no_grad()
    def __init__(self, schedule: OfficialSchedule, prompts: Sequence[Prompt]) -> None:
        """Walks every teacher with its prompts, and asks the base at the states it visits."""
        backbone = schedule.networks.backbone
        self.texts = backbone.encode_prompts(prompts)
        self.sigmas = schedule.schedule.sigmas[:-1]
        shape = (len(self.sigmas), len(prompts), *backbone.latent_shape)
        self.states, self.targets = torch.empty(shape), torch.empty(shape)
        for task in sorted(set(self.texts.tasks)):
            rows = [row for row, own in enumerate(self.texts.tasks) if own == task]
            draws = [generator(0, "frozen", row) for row in rows]
            walk = schedule.rollout(schedule.teachers[task], self.texts.rows(rows), draws)
            self.states[:, rows] = torch.stack(walk[:-1])
        for step, sigma in enumerate(self.sigmas):
            levels = sigma.expand(len(prompts))
            self.targets[step] = schedule.target(self.states[step], levels, self.texts)
        self.base = self._gap(backbone)

    @torch.no_grad()
    def left(self, student: VelocityField) -> Tensor:
        """Returns the share of the base's squared gap to the teachers that is left, [T], by noise level."""
        return self._gap(student) / self.base

    def _gap(self, policy: VelocityField) -> Tensor:
        gaps = []
        for state, target, sigma in zip(self.states, self.targets, self.sigmas, strict=True):
            velocity = policy.velocity(state, sigma.expand(len(state)), self.texts)
            gaps.append((velocity - target).square().mean())
        return torch.stack(gaps)
