"""Guidance folding: a student without guidance learns its teachers' guided field, at half the cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flow_opd.config.common import OptimizerSettings
from flow_opd.method.objectives import OPDPolicies
from flow_opd.method.opd import direct_opd
from flow_opd.protocols import VelocityField
from flow_opd.training.trainer import LoopSettings, Trainer
from flow_opd.types import Conditioning
from tiny import PROMPTS, Tiny

SCALE = 2.0


class CountedRows:
    """A backbone's velocity that counts the rows it is asked for."""

    def __init__(self, tiny: Tiny) -> None:
        self.rows = 0
        self.velocity_of = tiny.backbone.velocity
        tiny.backbone.velocity = self.velocity  # type: ignore[method-assign]

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        if torch.is_grad_enabled():  # the student
            self.rows += len(latents)
        return self.velocity_of(latents, sigma, conditioning)


def distilled(tiny: Tiny, folder: Path, *, student_scale: float, rounds: int) -> None:
    policies = OPDPolicies(
        tiny.backbone,
        tiny.policy("student", student_scale),
        tiny.policy("teacher-shapes", SCALE),
        anchor=None,
    )
    source, objective = direct_opd(policies, tiny.walks(num_steps=4, prompts=8))
    Trainer(
        parameters=tiny.parameters,
        source=source,
        objective=objective,
        settings=LoopSettings(rounds=rounds, optimizer=OptimizerSettings(learning_rate=2e-2, weight_decay=0)),
        folder=folder,
        identity="folding",
    ).run()


def distance(tiny: Tiny, one: VelocityField, other: VelocityField) -> float:
    draw = torch.Generator().manual_seed(5)
    conditioning = tiny.backbone.encode_prompts([*PROMPTS] * 4)
    latents, sigma = torch.randn(16, 4, 4, 4, generator=draw), torch.rand(16, generator=draw)
    with torch.no_grad():
        fields = (each.velocity(latents, sigma, conditioning) for each in (one, other))
        return float((next(fields) - next(fields)).square().mean())


@pytest.mark.slow
def test_the_student_takes_up_the_guidance(tmp_path: Path) -> None:
    tiny = Tiny()
    guided, plain = tiny.policy("teacher-shapes", SCALE), tiny.policy("teacher-shapes")
    before = distance(tiny, tiny.student, guided)
    distilled(tiny, tmp_path, student_scale=1.0, rounds=80)
    after = distance(tiny, tiny.student, guided)
    assert after < 0.3 * before
    assert after < 0.6 * distance(tiny, plain, guided), "it learnt more than the teacher without guidance"


def test_the_student_costs_half(tmp_path: Path) -> None:
    rows = {}
    for scale in (1.0, SCALE):
        tiny = Tiny()
        counted = CountedRows(tiny)
        distilled(tiny, tmp_path / str(scale), student_scale=scale, rounds=2)
        rows[scale] = counted.rows
    assert rows[SCALE] == 2 * rows[1.0] > 0
