"""Rows of an update by hand, and adapters by their config."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flow_opd.config.common import LoraSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import from_values
from flow_opd.config.teacher import TeacherSettings
from flow_opd.planning.job import Job, Work, distill_job, teacher_job


def distillation(values: dict) -> Job:
    return distill_job(from_values(values, DistillSettings), student="student", anchor="anchor")


def grpo(values: dict) -> Job:
    return teacher_job(from_values(values, TeacherSettings), student="student")


def test_the_direct_kl_sees_every_state_once(disk) -> None:
    job = distillation(disk.distillation())
    assert job.work == Work(student=24, teacher=24, anchor=24)  # 8 prompts, 3 steps
    assert job.naive == Work(student=24, teacher=24, anchor=24, rollout=24, decode=8)
    assert job.updates == 5
    assert not job.decodes


def test_without_an_anchor_there_is_none(disk) -> None:
    job = distillation(disk.distillation(anchor=None))
    assert job.work.anchor == 0
    assert set(job.loras) == {"a", "b", "student"}
    assert job.pipelines == 3


def test_an_anchor_that_is_a_teacher_is_no_further_adapter(disk) -> None:
    job = distillation(disk.distillation(anchor={"teacher": "a", "share": 1.0}))
    assert set(job.loras) == {"a", "b", "student"}
    assert job.work.anchor == 24


def test_a_policy_gradient_walks_judges_and_trains(disk) -> None:
    objective = {"name": "sampled-log-ratio", "updates_per_round": 2}
    job = distillation(disk.distillation(objective=objective))
    # 8 prompts walk 3 steps; 2 of them are noisy: judged by student and teacher, then trained. Two updates.
    assert job.work == Work(student=8, teacher=8, anchor=8, rollout=(24 + 16) / 2)
    assert job.naive.rollout == 24 / 2
    assert job.updates == 10


def test_grpo_decodes_and_trains_the_noisy_steps(disk) -> None:
    job = grpo(disk.grpo())
    # 8 images, 3 steps, 2 of them noisy
    assert job.work == Work(student=16, reference=16, rollout=24, decode=8, scored=8)
    assert job.decodes
    assert job.pipelines == 2
    fewer = grpo(disk.grpo(steps_per_round=1, updates_per_round=2, kl_weight=0.0))
    assert fewer.work == Work(student=4, rollout=12, decode=4, scored=4)
    assert fewer.pipelines == 1


def test_adapters_are_read_from_their_configs(disk) -> None:
    job = distillation(disk.distillation())
    assert {name: lora.rank for name, lora in job.loras.items()} == {
        "a": 2,
        "b": 2,
        "anchor": 2,
        "student": 4,
    }
    assert job.notes == ()


@pytest.mark.parametrize(
    ("start", "rank", "alpha"),
    [
        (None, 32, 64.0),  # a fresh adapter
        ({"merge": {"name": "svd", "rank": 3}}, 3, 6.0),
        ({"merge": {"name": "svd", "rank": 3, "alpha": 3.0}}, 3, 3.0),
        ({"merge": "mean"}, 4, 8.0),  # stacked factors: 2 + 2
        ({"merge": "factor-average"}, 2, 4.0),
    ],
)
def test_the_students_form_follows_its_start(disk, start, rank: int, alpha: float) -> None:
    student = distillation(disk.distillation(cold_start=start)).loras["student"]
    assert (student.rank, student.alpha) == (rank, alpha)


@pytest.mark.parametrize(
    ("start", "rank"),
    [
        ({"adapter": "wide"}, 4),
        ({"merge": {"name": "svd", "rank": 3}, "adapters": ["a", "wide"]}, 3),
        ({"merge": "mean", "adapters": ["a", "b", "wide"]}, 8),
    ],
)
def test_a_teacher_may_start_from_adapters(disk, start, rank: int) -> None:
    where = {name: str(path) for name, path in disk.adapters.items()}
    named = {
        "adapter": where.get(start.get("adapter")),
        "adapters": [where[n] for n in start.get("adapters", ())],
    }
    job = grpo(
        disk.grpo(lora=None, cold_start={**start, **{key: value for key, value in named.items() if value}})
    )
    assert {name: lora.rank for name, lora in job.loras.items()} == {"student": rank}
    elsewhere = {"merge": "mean", "adapters": [where["a"], "someone/adapter"]}
    assert grpo(disk.grpo(lora=None, cold_start=elsewhere)).notes == (
        "not on this machine, taken to have rank 32: someone/adapter",
    )


def test_a_distillation_may_merge_others_than_its_teachers(disk) -> None:
    start = {"merge": "mean", "adapters": [str(disk.adapters["wide"])] * 2}
    assert distillation(disk.distillation(cold_start=start)).loras["student"].rank == 8


def test_an_adapter_that_is_not_here_is_assumed_and_said(disk, tmp_path: Path) -> None:
    values = disk.distillation()
    values["teachers"][0]["adapter"] = "someone/adapter"
    job = distillation(values)
    assert job.loras["a"] == LoraSettings()
    assert job.notes == ("not on this machine, taken to have rank 32: someone/adapter",)
    shutil.copytree(disk.adapters["b"], tmp_path / "later")
    values["teachers"][0]["adapter"] = str(tmp_path / "later")
    assert distillation(values).notes == ()
