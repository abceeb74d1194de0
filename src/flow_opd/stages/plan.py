"""Says what a training will need before it runs: memory, FLOPs, hours, and what to change if too much."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor

from flow_opd.adapters.bank import AdapterBank
from flow_opd.config.common import LoraSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import read_document
from flow_opd.config.objectives import PolicyGradientSettings
from flow_opd.config.options import PlanSettings
from flow_opd.config.sampling import SamplingSettings
from flow_opd.config.stages import of_stage
from flow_opd.config.state_weights import TransitionWeightsSettings, VelocityWeightsSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.config.teachers import RoutedTeacherSettings
from flow_opd.method.grpo import grpo
from flow_opd.method.opd import distillation
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.routing import HardRouter, RoutedTeachers
from flow_opd.method.walk import Walks, build_walks, refuse_tiny_levels
from flow_opd.planning.architectures import read_architecture
from flow_opd.planning.job import Job, TrainingSettings, distill_job, teacher_job
from flow_opd.planning.plan import Plan, make_plan, share_of_process
from flow_opd.planning.probe import (
    REFERENCE,
    ROLLOUT,
    STUDENT,
    Measurements,
    MeteredField,
    Reading,
    read_decode,
    read_update,
    read_velocity,
)
from flow_opd.planning.scoring import Scoring, read_scoring
from flow_opd.planning.shapes import ShapeModel, build_model
from flow_opd.planning.table import plan_view
from flow_opd.processes import ALONE
from flow_opd.protocols import BatchSource, LoadedBackbone, Objective
from flow_opd.quiet import quiet_loading
from flow_opd.runs.base import Base
from flow_opd.runs.teachers import ANCHOR as ANCHOR_ADAPTER
from flow_opd.runs.teachers import named_policies
from flow_opd.runs.training import STUDENT as STUDENT_ADAPTER
from flow_opd.types import Prompt, RewardScores, RewardTable

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


def read_training(path: Path, overrides: Sequence[str] = ()) -> TrainingSettings:
    """Returns the settings of a distillation or of a Flow-GRPO teacher, whichever the file says it holds.

    Raises:
        ConfigError: if it is neither, or something in it is wrong.
    """
    found = of_stage(read_document(path, overrides), "distill", "teacher")
    assert isinstance(found, TrainingSettings)
    return found


def plan_training(settings: TrainingSettings, assumed: PlanSettings) -> Plan:
    """Returns the plan of a training.

    The training itself is assembled as its stage does it, on tensors without data, and one micro-batch of
    it is run with and without gradient checkpointing; the rest is multiplication.

    Raises:
        ConfigError: if the base is not known here and its config files cannot be had, or its grid does not
            suit the dynamics.
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
            job.loras,
            student=STUDENT_ADAPTER,
            vae_tiling=settings.compute.vae_tiling,
        )
    refuse_tiny_levels(model.backbone.sigmas(settings.sampling.num_steps), settings.sampling)
    rows = share_of_process(job, assumed.processes).micro_batch_size
    return make_plan(job, architecture, model, _read(job, model, rows), assumed)


def _read(job: Job, model: ShapeModel, rows: int) -> Measurements:
    """Returns the measurements of a micro-batch of `rows` rows."""
    plain, checkpointed = (_read_update(job, model, rows, checkpointing=on) for on in (False, True))
    teacher, anchor, scoring = 0.0, 0.0, Scoring()
    if isinstance(job.settings, DistillSettings):
        teacher, anchor = _costs_of_targets(job.settings, job, model)
    else:
        side = model.backbone.inner.image_size
        scoring = read_scoring(
            job.settings.rewards, rows=rows, image_size=side, task_shares=job.settings.task_shares
        )
    decode = read_decode(model, rows)
    return Measurements(plain, checkpointed, decode=decode, teacher=teacher, anchor=anchor, scoring=scoring)


def _read_update(job: Job, model: ShapeModel, rows: int, *, checkpointing: bool) -> Reading:
    settings = job.settings
    model.checkpointing(checkpointing)
    if isinstance(settings, DistillSettings):
        return read_update(model, *_distillation(settings, job, model, rows))
    return read_update(model, *_grpo(settings, job, model, rows))


def _distillation(
    settings: DistillSettings, job: Job, model: ShapeModel, rows: int
) -> tuple[BatchSource, Objective]:
    """Returns a round of one micro-batch whose rows all use the costliest teacher."""
    objective = settings.objective
    if isinstance(objective, PolicyGradientSettings):
        objective = objective.model_copy(update={"updates_per_round": 1})
    anchor = settings.anchor and settings.anchor.model_copy(update={"share": 1.0})  # it may be all of them
    small = settings.model_copy(
        update={"sampling": _short(settings.sampling), "objective": objective, "anchor": anchor}
    )
    policies = named_policies(small, _base(small, model), model.backbone)
    kind = _kind(job.loras[STUDENT_ADAPTER], settings.sampling.guidance_scale)
    student = MeteredField(policies.student, model, STUDENT, kind=kind, without_gradients=ROLLOUT)
    task = _costliest(settings, job).tasks[0]
    walks = _walks(model, small.sampling, task=task, prompts=rows, micro_batch_size=rows)
    return distillation(small, replace(policies, student=student), walks)


def _grpo(settings: TeacherSettings, job: Job, model: ShapeModel, rows: int) -> tuple[BatchSource, Objective]:
    """Returns a round of one group, whose images are decoded; rewards are read apart, by `read_scoring`."""
    small = settings.model_copy(
        update={
            "sampling": _short(settings.sampling),
            "group_size": max(2, rows),  # a group of one has no spread
            "shared_start": False,  # every row of the micro-batch is to be computed
            "trained_steps": "stochastic",
            "steps_per_round": None,
            "state_weights": TransitionWeightsSettings(),  # own ones are for more steps
            "updates_per_round": 1,
            "micro_batch_size": rows,
        }
    )
    guidance = settings.sampling.guidance_scale
    base = _base(small, model)
    student, reference = (base.policy(name, guidance) for name in (STUDENT_ADAPTER, None))
    trained, bare = _kind(job.loras[STUDENT_ADAPTER], guidance), _kind(None, guidance)
    return grpo(
        small,
        MeteredField(student, model, STUDENT, kind=trained, without_gradients=ROLLOUT),
        MeteredField(reference, model, REFERENCE, kind=bare),
        model.backbone,
        _walks(model, small.sampling, task="", prompts=1, micro_batch_size=rows),
        _NoReward(),
        seed=0,
    )


def _base(settings: TrainingSettings, model: ShapeModel) -> Base:
    """Returns the model as a base whose adapters are there already."""
    backbone, bank = cast(LoadedBackbone, model.backbone), cast(AdapterBank, model.adapters)
    return Base(settings.base, settings.compute, backbone, bank)


def _kind(lora: LoraSettings | None, guidance_scale: float) -> Hashable:
    """Returns all of a policy that decides what a row of it costs."""
    return (lora, guidance_scale != 1)


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
        weights=VelocityWeightsSettings(),
        seed=0,
        micro_batch_size=micro_batch_size,
        processes=ALONE,
    )


def _costliest(settings: DistillSettings, job: Job) -> RoutedTeacherSettings:
    """Returns the teacher whose rows take most; one that is no anchor, as the anchor then runs apart."""
    anchor = settings.anchor and settings.anchor.teacher
    return max(
        settings.teachers,
        key=lambda each: (
            each.guidance_scale != 1,
            each.extrapolation != 1,
            job.loras[each.name].rank,
            each.name != anchor,
        ),
    )


def _costs_of_targets(settings: DistillSettings, job: Job, model: ShapeModel) -> tuple[float, float]:
    """Returns the FLOPs of a velocity for one row: a teacher's, a mean over tasks, and the anchor's."""
    policies = named_policies(settings, _base(settings, model), model.backbone)
    routed = policies.teachers
    assert isinstance(routed, RoutedTeachers)
    measured: dict[Hashable, float] = {}
    total, weights = 0.0, 0.0
    for each in settings.teachers:
        kind = (job.loras[each.name], each.guidance_scale != 1, each.extrapolation != 1)
        if kind not in measured:
            task = each.tasks[0]
            alone = RoutedTeachers({each.name: routed.teachers[each.name]}, HardRouter({task: each.name}))
            measured[kind] = read_velocity(model, alone, task)
        for task in each.tasks:
            share = settings.task_shares[task] if settings.task_shares else 1.0
            total, weights = total + share * measured[kind], weights + share
    anchor = 0.0 if policies.anchor is None else read_velocity(model, policies.anchor.field, "")
    return total / weights, anchor


class _NoReward:
    """Stands where rewards stand."""

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardTable:
        """Returns zeros."""
        rows = len(prompts)
        zeros = RewardScores("none", torch.zeros(rows), torch.ones(rows, dtype=torch.bool), (0.0, 0.0))
        return RewardTable({"none": zeros}, {"none": 1.0})
