"""Says what a training will need before it runs: memory, FLOPs, hours, and what to change if too much."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from flow_opd.adapters.form import LoraForm
from flow_opd.assembly.training import STUDENT as STUDENT_ADAPTER
from flow_opd.assembly.walks import build_walks
from flow_opd.backbones.quiet import quiet_loading
from flow_opd.config.common import SamplingSettings
from flow_opd.config.distill import DirectKLSettings, DistillSettings
from flow_opd.config.plan import PlanSettings, TrainingSettings, read_training
from flow_opd.config.teacher import TeacherSettings
from flow_opd.config.teachers import RoutedTeacherSettings
from flow_opd.planning.architectures import read_architecture
from flow_opd.planning.job import Job, distill_job, teacher_job
from flow_opd.planning.plan import Plan, make_plan, share_of_process
from flow_opd.planning.probe import (
    ANCHOR,
    REFERENCE,
    ROLLOUT,
    STUDENT,
    TEACHER,
    MeteredField,
    Reading,
    Readings,
    read_decode,
    read_update,
    read_velocity,
)
from flow_opd.planning.scoring import Scoring, read_scoring
from flow_opd.planning.shapes import ShapeModel, build_model
from flow_opd.planning.table import plan_view
from flow_opd.processes import ALONE
from flow_opd.prompts.rounds import PromptRounds
from flow_opd.protocols import BatchSource, Objective
from flow_opd.rollout.walk_batches import Walks
from flow_opd.stages import distill, teacher
from flow_opd.stages.distill import ANCHOR as ANCHOR_ADAPTER
from flow_opd.types import Prompt, RewardTable

SHORT = {"num_steps": 2, "stochastic_steps": (0, 0)}  # two steps say what all of them cost


def run(path: Path, overrides: Sequence[str], assumed: PlanSettings, *, as_json: bool) -> None:
    """Prints the plan of the training in a configuration file."""
    settings = read_training(path, overrides)
    with Console(stderr=True).status("running a micro-batch of shapes ..."):
        plan = plan_training(settings, assumed)
    if as_json:
        print(json.dumps(plan.as_json(), indent=2, allow_nan=False))
    else:
        Console(highlight=False).print(plan_view(plan))


def plan_training(settings: TrainingSettings, assumed: PlanSettings) -> Plan:
    """Returns the plan of a training.

    The training itself is assembled as its stage does it, on tensors without data, and one micro-batch of
    it is run with and without gradient checkpointing; the rest is multiplication.

    Raises:
        ConfigError: if the base is not known here and its config files cannot be had.
        AdapterError: if the LoRA does not fit the base.
    """
    if isinstance(settings, DistillSettings):
        job = distill_job(settings, student=STUDENT_ADAPTER, anchor=ANCHOR_ADAPTER)
    else:
        job = teacher_job(settings, student=STUDENT_ADAPTER)
    with quiet_loading():
        architecture = read_architecture(settings.base)
        model = build_model(
            architecture,
            settings.base,
            job.forms,
            student=STUDENT_ADAPTER,
            vae_tiling=settings.compute.vae_tiling,
        )
    rows = share_of_process(job, assumed.processes).micro_batch_size
    return make_plan(job, architecture, model, _read(job, model, rows), assumed)


def _read(job: Job, model: ShapeModel, rows: int) -> Readings:
    """Returns the readings of a micro-batch of `rows` rows."""
    plain, checkpointed = (_read_update(job, model, rows, checkpointing=on) for on in (False, True))
    cost, scoring = 0.0, Scoring()
    if isinstance(job.settings, DistillSettings):
        cost = _teacher_cost(job.settings, job, model, costliest=plain.flops_per_row(TEACHER))
    else:
        side = model.backbone.inner.image_size
        scoring = read_scoring(job.settings.rewards, rows=rows, image_size=side)
    return Readings(plain, checkpointed, decode=read_decode(model, rows), teacher=cost, scoring=scoring)


def _read_update(job: Job, model: ShapeModel, rows: int, *, checkpointing: bool) -> Reading:
    settings = job.settings
    model.checkpointing(checkpointing)
    if isinstance(settings, DistillSettings):
        return read_update(model, *_distillation(settings, job, model, rows))
    return read_update(model, *_grpo(settings, job, model, rows))


def _distillation(
    settings: DistillSettings, job: Job, model: ShapeModel, rows: int
) -> tuple[BatchSource, Objective]:
    """Returns a round of one micro-batch whose rows all ask the costliest teacher."""
    objective = settings.objective
    if not isinstance(objective, DirectKLSettings):
        objective = objective.model_copy(update={"updates_per_round": 1})
    small = settings.model_copy(update={"sampling": _short(settings.sampling), "objective": objective})
    policies = distill.policies_of(small, model.backbone, model.backbone, model.adapters)
    teacher, anchor = _costliest(settings, job), settings.anchor
    student = _kind(job.forms[STUDENT_ADAPTER], settings.sampling.guidance_scale)
    metered = replace(
        policies,
        student=MeteredField(policies.student, model, STUDENT, kind=student, without_gradients=ROLLOUT),
        teachers=MeteredField(policies.teachers, model, TEACHER, kind=_kind_of(teacher, job)),
    )
    if anchor is not None:
        assert policies.anchor is not None
        kind = _kind(job.forms[anchor.teacher or ANCHOR_ADAPTER], anchor.guidance_scale)
        metered = replace(metered, anchor=MeteredField(policies.anchor, model, ANCHOR, kind=kind))
    walks = _walks(model, small.sampling, task=teacher.tasks[0], prompts=rows, micro_batch_size=rows)
    return distill.algorithm_of(small, metered, walks)


def _grpo(settings: TeacherSettings, job: Job, model: ShapeModel, rows: int) -> tuple[BatchSource, Objective]:
    """Returns a round of one group, whose images are decoded; rewards are read apart, by `read_scoring`."""
    small = settings.model_copy(
        update={
            "sampling": _short(settings.sampling),
            "group_size": max(2, rows),  # a group of one has no spread
            "trained_steps": "stochastic",
            "steps_per_round": None,
            "updates_per_round": 1,
            "micro_batch_size": rows,
        }
    )
    student = teacher.policy_of(small, model.backbone, model.backbone, model.adapters, STUDENT_ADAPTER)
    reference = teacher.policy_of(small, model.backbone, model.backbone, model.adapters, None)
    guidance = settings.sampling.guidance_scale
    trained, bare = _kind(job.forms[STUDENT_ADAPTER], guidance), _kind(None, guidance)
    return teacher.algorithm_of(
        small,
        MeteredField(student, model, STUDENT, kind=trained, without_gradients=ROLLOUT),
        MeteredField(reference, model, REFERENCE, kind=bare),
        model.backbone,
        _walks(model, small.sampling, task="", prompts=1, micro_batch_size=rows),
        _NoReward(),
    )


def _kind(form: LoraForm | None, guidance_scale: float) -> Hashable:
    """Returns all of a policy that decides what a row of it costs."""
    return (form, guidance_scale != 1)


def _kind_of(each: RoutedTeacherSettings, job: Job) -> Hashable:
    return _kind(job.forms[each.name], each.guidance_scale)


def _short(sampling: SamplingSettings) -> SamplingSettings:
    return sampling.model_copy(update=SHORT)


def _walks(
    model: ShapeModel, sampling: SamplingSettings, *, task: str, prompts: int, micro_batch_size: int
) -> Walks:
    groups = PromptRounds([Prompt("", task)], seed=0, prompts_per_round=prompts)
    return build_walks(
        model.backbone,
        model.backbone,
        groups,
        sampling,
        seed=0,
        micro_batch_size=micro_batch_size,
        processes=ALONE,
    )


def _costliest(settings: DistillSettings, job: Job) -> RoutedTeacherSettings:
    return max(settings.teachers, key=lambda each: (each.guidance_scale != 1, job.forms[each.name].rank))


def _teacher_cost(settings: DistillSettings, job: Job, model: ShapeModel, *, costliest: float) -> float:
    """Returns the FLOPs of a teacher's velocity for one row, weighed by the shares of the tasks.

    Args:
        settings: of the distillation.
        job: with the forms of the teachers.
        model: the base.
        costliest: what the costliest teacher takes, which is known already.
    """
    teachers = distill.policies_of(settings, model.backbone, model.backbone, model.adapters).teachers

    measured = {_kind_of(_costliest(settings, job), job): costliest}
    total, weights = 0.0, 0.0
    for each in settings.teachers:
        kind = _kind_of(each, job)
        if kind not in measured:
            measured[kind] = read_velocity(model, teachers, each.tasks[0])
        for task in each.tasks:
            share = settings.task_shares[task] if settings.task_shares else 1.0
            total, weights = total + share * measured[kind], weights + share
    return total / weights


class _NoReward:
    """Stands where rewards stand."""

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardTable:
        """Returns zeros."""
        rows = len(prompts)
        return RewardTable({}, torch.zeros(rows), torch.ones(rows, dtype=torch.bool))
