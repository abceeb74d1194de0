"""What each algorithm is made of, and that distillation does learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_opd.config.common import OptimizerSettings
from flow_opd.config.file.reader import from_values
from flow_opd.config.teacher import TeacherSettings
from flow_opd.flow.weights import (
    StateWeights,
    given_weights,
    noisy_weights,
    transition_weights,
    velocity_weights,
    x0_weights,
)
from flow_opd.method.corrections import CorrectedRollouts, sampled_log_ratio
from flow_opd.method.groups import GroupRollouts, GroupSampling
from flow_opd.method.grpo import flow_grpo, grpo
from flow_opd.method.objectives import VelocityGap, WeightedTerms
from flow_opd.method.opd import direct_opd, policy_gradient_opd
from flow_opd.method.walk import WalkBatches
from flow_opd.training.trainer import LoopSettings, Trainer
from tiny import REDNESS, Recorder, Tiny


def names(objective: WeightedTerms) -> list[tuple[float, str]]:
    """Returns weight and name of each term, a gap by its targets."""
    found = []
    for weight, term in objective.terms:
        if isinstance(term, VelocityGap):
            found += [(weight * target.weight, target.name) for target in term.targets]
        else:
            found.append((weight, term.name))
    return found


def tiny_grpo(tiny: Tiny, kl_weight: float) -> WeightedTerms:
    _, objective = flow_grpo(
        tiny.student,
        tiny.policy(None),
        tiny.backbone,
        tiny.walks(),
        REDNESS,
        GroupSampling(group_size=2, steps_of_round=lambda index: range(2)),
        clip_range=0.1,
        kl_weight=kl_weight,
    )
    return objective


def test_each_algorithm_is_a_source_and_a_sum_of_terms(tiny: Tiny) -> None:
    source, objective = direct_opd(tiny.policies(anchor_weight=0.04), tiny.walks())
    assert isinstance(source, WalkBatches)
    assert names(objective) == [(1.0, "teacher_gap"), (0.04, "anchor_gap")]
    without = replace(tiny.policies(), anchor=None)
    assert names(direct_opd(without, tiny.walks())[1]) == [(1.0, "teacher_gap")]
    options = {"updates_per_round": 1, "clip_range": 0.1, "advantage_clip": 5.0}
    source, objective = policy_gradient_opd(
        tiny.policies(0.02), tiny.walks(), correction=sampled_log_ratio, **options
    )
    assert isinstance(source, CorrectedRollouts)
    assert names(objective) == [(1.0, "policy_gradient"), (0.02, "anchor_gap")]
    assert names(tiny_grpo(tiny, 0.0)) == [(1.0, "policy_gradient")]
    assert names(tiny_grpo(tiny, 0.3)) == [(1.0, "policy_gradient"), (0.3, "reference_kl")]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, transition_weights),
        ("transition", transition_weights),
        ("velocity", velocity_weights),
        ("x0", x0_weights),
        ("sde", noisy_weights(0.7)),
        ({"name": "custom", "values": [3, 1, 0]}, given_weights((3.0, 1.0, 0.0))),
    ],
)
def test_a_teachers_state_weights_reach_its_advantages(tiny: Tiny, spec: Any, expected: StateWeights) -> None:
    values = {
        "run": {"out": "unused", "rounds": 1},
        "base": {"path": "unused", "max_sequence_length": 0},
        "prompts": [{"path": "unused"}],
        "rewards": [{"name": "ocr"}],
        "sampling": {"num_steps": 3},
        **({} if spec is None else {"state_weights": spec}),
    }
    settings = from_values(values, TeacherSettings)
    walks = tiny.walks()
    source, _ = grpo(settings, tiny.student, tiny.policy(None), tiny.backbone, walks, REDNESS, seed=0)
    assert isinstance(source, GroupRollouts)
    found = source.sampling.state_weights(walks.schedule, walks.dynamics)
    assert torch.equal(found, expected(walks.schedule, walks.dynamics))


def test_the_anchor_is_listened_to_on_every_prompt(tiny: Tiny) -> None:
    """MAR's loss is lambda times the KL to the anchor over all rows, whatever their task."""
    source, objective = direct_opd(tiny.policies(anchor_weight=0.25), tiny.walks())
    (update,) = source.round(0)
    for batch in update:
        out = objective(batch)
        assert set(batch.conditioning.tasks) == {"shapes", "signs"}
        expected = out.metrics["teacher_gap"] + 0.25 * out.metrics["anchor_gap"]
        assert out.total.item() == pytest.approx(expected.item(), rel=1e-5)
        assert out.metrics["anchor_gap"] > 0


@pytest.mark.slow
def test_direct_distillation_brings_the_student_to_its_teachers(tmp_path: Path) -> None:
    tiny = Tiny()
    with torch.no_grad():
        for parameter in tiny.parameters.values():
            parameter.mul_(0.5)
    source, objective = direct_opd(replace(tiny.policies(), anchor=None), tiny.walks(num_steps=3))
    recorder = Recorder()
    Trainer(
        parameters=tiny.parameters,
        source=source,
        objective=objective,
        settings=LoopSettings(rounds=40, optimizer=OptimizerSettings(learning_rate=2e-2)),
        folder=tmp_path,
        identity="learns",
        callbacks=[recorder],
    ).run()
    kl = [line["teacher_gap"] for line in recorder.lines]
    assert sum(kl[-4:]) < 0.5 * sum(kl[:4])
