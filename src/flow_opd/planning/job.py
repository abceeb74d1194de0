"""What a configuration asks for: its adapters, and how many rows each policy sees in an update.

A row is one state of one trajectory. Everything here is arithmetic on settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flow_opd.adapters.form import DEFAULT_TARGET_MODULES, LoraForm
from flow_opd.adapters.lora import CONFIG_FILE
from flow_opd.adapters.peft_config import PeftConfig
from flow_opd.config import common
from flow_opd.config.distill import DirectKLSettings, DistillSettings
from flow_opd.config.locations import ASSET, locate
from flow_opd.config.merge import DAREMergeSettings, SVDMergeSettings, TIESMergeSettings
from flow_opd.config.plan import TrainingSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.flow.dynamics import DYNAMICS
from flow_opd.flow.schedule import make_schedule
from flow_opd.rollout.sampler import steps_with_density


@dataclass(frozen=True)
class Work:
    """Rows of each part of one optimizer update, a mean over the updates of a round."""

    student: float  # forward and backward pass
    rollout: float = 0.0  # the student without gradients
    teacher: float = 0.0
    anchor: float = 0.0
    reference: float = 0.0
    decode: float = 0.0  # images
    scored: float = 0.0  # images that rewards judge


@dataclass(frozen=True)
class Job:
    """One training, as far as its cost is concerned."""

    settings: TrainingSettings
    forms: Mapping[str, LoraForm]  # adapter -> rank, alpha and targets; the student among them
    trajectories: int  # of a round
    work: Work
    naive: Work
    decodes: bool  # images are decoded in training, so the VAE stays
    pipelines: int  # policies that a schedule without shared base loads
    updates: int  # optimizer updates of the whole run
    notes: tuple[str, ...]  # what had to be assumed


def distill_job(settings: DistillSettings, *, student: str, anchor: str) -> Job:
    """Returns the cost of a distillation; `student` and `anchor` are names of adapters beside the teachers'.

    The direct KL takes the gradient on the walk itself: B T rows. A policy gradient walks without
    gradients first, has the S steps with a density judged by student and teacher, and trains on those.
    """
    rows, steps = settings.prompts_per_round, settings.sampling.num_steps
    updates = settings.updates_per_round()
    if isinstance(settings.objective, DirectKLSettings):
        work = Work(student=rows * steps, teacher=rows * steps)
    else:
        trained = rows * _steps_with_density(settings.sampling)
        work = Work(
            student=trained / updates, teacher=trained / updates, rollout=(rows * steps + trained) / updates
        )
    if settings.anchor is not None:
        work = replace(work, anchor=work.student)
    forms, notes = _distill_forms(settings, student, anchor)
    return Job(
        settings=settings,
        forms=forms,
        trajectories=rows,
        work=work,
        naive=replace(work, rollout=rows * steps / updates, decode=rows / updates),
        decodes=False,
        pipelines=len(forms),
        updates=settings.run.rounds * updates,
        notes=notes,
    )


def teacher_job(settings: TeacherSettings, *, student: str) -> Job:
    """Returns the cost of a Flow-GRPO teacher: B T rows walk, B images are decoded, B S rows are trained."""
    rows = settings.groups_per_round * settings.group_size
    updates = settings.updates_per_round
    trained = settings.steps_per_round or len(range(*settings.trained_range()))
    reference = settings.kl_weight > 0
    work = Work(
        student=rows * trained / updates,
        rollout=rows * settings.sampling.num_steps / updates,
        reference=rows * trained / updates if reference else 0.0,
        decode=rows / updates,
        scored=rows / updates,
    )
    form = LoraForm.of(settings.lora)
    return Job(
        settings=settings,
        forms={student: form},
        trajectories=rows,
        work=work,
        naive=work,
        decodes=True,
        pipelines=1 + reference,
        updates=settings.run.rounds * updates,
        notes=(),
    )


def _steps_with_density(sampling: common.SamplingSettings) -> int:
    grid = torch.linspace(1, 0, sampling.num_steps + 1)  # which steps have a density, any grid can tell
    schedule = make_schedule(
        grid, noise_level=sampling.noise_level, stochastic_steps=sampling.stochastic_range()
    )
    return len(steps_with_density(schedule, DYNAMICS.get(sampling.dynamics)))


def _distill_forms(
    settings: DistillSettings, student: str, anchor: str
) -> tuple[dict[str, LoraForm], tuple[str, ...]]:
    """Returns the form of each adapter, the student last, and what had to be assumed."""
    named = {each.name: each.adapter for each in settings.teachers}
    if settings.anchor is not None and settings.anchor.adapter is not None:
        named[anchor] = settings.anchor.adapter
    start = settings.cold_start
    if start is not None and start.adapter is not None:
        named[student] = start.adapter
    forms = {name: _form(adapter) for name, adapter in named.items()}
    usual = LoraForm()
    unknown = [named[name] for name, form in forms.items() if form is None]
    found = {name: form or usual for name, form in forms.items()}
    if start is None:
        found[student] = LoraForm.of(settings.lora or common.LoraSettings())
    elif start.merge is not None:
        ranks = [found[each.name].rank for each in settings.teachers]
        method = start.merge
        if isinstance(method, SVDMergeSettings | TIESMergeSettings | DAREMergeSettings):
            rank = method.rank
        else:
            rank = max(ranks) if method.name == "factor-average" else sum(ranks)
        found[student] = replace(found[settings.teachers[0].name], rank=rank, alpha=float(rank))
    if not unknown:
        return found, ()
    note = f"not on this machine, taken to have rank {usual.rank}: {', '.join(dict.fromkeys(unknown))}"
    return found, (note,)


def _form(adapter: str) -> LoraForm | None:
    """Returns the form of an adapter folder, or None where it is not here: on the hub, or yet to be trained.

    Raises:
        AdapterError: if its config is not that of a plain LoRA.
        ConfigError: if the package has no such asset.
    """
    folder = locate(adapter, key="adapter") if adapter.startswith(ASSET) else Path(adapter).expanduser()
    file = folder / CONFIG_FILE
    if not file.exists():
        return None
    config = PeftConfig.of(json.loads(file.read_text()), str(file))
    return LoraForm(config.rank, config.alpha, config.targets or DEFAULT_TARGET_MODULES)
