"""What a configuration asks for: its adapters, and how many rows each policy sees in an update.

A row is one state of one trajectory. Everything here is arithmetic on settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flow_opd.adapters.lora import CONFIG_FILE
from flow_opd.adapters.peft_config import PeftConfig
from flow_opd.config.common import ATTENTION_PROJECTIONS, LoraSettings
from flow_opd.config.distill import AnchorSettings, DistillSettings
from flow_opd.config.locations import ASSET, locate
from flow_opd.config.merge import MergeMethodSettings
from flow_opd.config.sampling import SamplingSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.flow.path import make_schedule
from flow_opd.method.rollouts import steps_with_density

TrainingSettings = DistillSettings | TeacherSettings


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
    loras: Mapping[str, LoraSettings]  # adapter -> rank, alpha and targets; the student among them
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
    if not settings.objective.by_policy_gradient:
        weighted = settings.state_weights.weighted(steps)
        work = Work(student=rows * weighted, teacher=rows * weighted, rollout=rows * (steps - weighted))
    else:
        trained = rows * _steps_with_density(settings.sampling)
        work = Work(
            student=trained / updates, teacher=trained / updates, rollout=(rows * steps + trained) / updates
        )
    everywhere = 0.0  # states at which an anchor with share 1 is evaluated
    if settings.anchor is not None:
        everywhere = work.student * (1 - _answered_by_teachers(settings, settings.anchor))
        work = replace(work, anchor=everywhere * settings.anchor_share(settings.anchor))
    named = {each.name: each.adapter for each in settings.teachers}
    if settings.anchor is not None and settings.anchor.adapter is not None:
        named[anchor] = settings.anchor.adapter
    loras, notes = _loras(settings, named, student)
    return Job(
        settings=settings,
        loras=loras,
        trajectories=rows,
        work=work,
        naive=replace(work, anchor=everywhere, rollout=rows * steps / updates, decode=rows / updates),
        decodes=False,
        pipelines=len(loras),
        updates=settings.run.rounds * updates,
        notes=notes,
    )


def teacher_job(settings: TeacherSettings, *, student: str) -> Job:
    """Returns the cost of a Flow-GRPO teacher: B T rows walk, B images are decoded, B S rows are trained.

    With `shared_start` it is too much: what a group has in common is computed once, but counted per image.
    """
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
    loras, notes = _loras(settings, {}, student)
    return Job(
        settings=settings,
        loras=loras,
        trajectories=rows,
        work=work,
        naive=work,
        decodes=True,
        pipelines=1 + reference,
        updates=settings.run.rounds * updates,
        notes=notes,
    )


def _answered_by_teachers(settings: DistillSettings, anchor: AnchorSettings) -> float:
    """Returns the share of the rows whose teacher is the anchor, so that one velocity serves both."""
    shares = settings.task_shares or dict.fromkeys(settings.teacher_of_task(), 1.0)
    same = [
        task
        for each in settings.teachers
        for task in each.tasks
        if each.name == anchor.teacher and each.guidance_scale == anchor.guidance_scale
    ]
    return sum(shares[task] for task in same) / sum(shares.values())


def _steps_with_density(sampling: SamplingSettings) -> int:
    grid = torch.linspace(1, 0, sampling.num_steps + 1)  # which steps have a density, any grid can tell
    schedule = make_schedule(
        grid, noise_level=sampling.noise_level, stochastic_steps=sampling.stochastic_range()
    )
    return len(steps_with_density(schedule, sampling.dynamics.build()))


def _loras(
    settings: TrainingSettings, named: Mapping[str, str], student: str
) -> tuple[dict[str, LoraSettings], tuple[str, ...]]:
    """Returns rank, alpha and targets of each adapter in memory, the student last, and what was assumed.

    Args:
        settings: of the training.
        named: name -> adapter of the others; the teachers of a distillation come first.
        student: name of the student.
    """
    usual, unknown = LoraSettings(), []

    def lora_of(adapter: str) -> LoraSettings:
        found = _known_lora(adapter)
        if found is None:
            unknown.append(adapter)
        return found or usual

    found = {name: lora_of(adapter) for name, adapter in named.items()}
    start = settings.cold_start
    if start is None:
        found[student] = settings.lora or LoraSettings()
    elif start.adapter is not None:
        found[student] = lora_of(start.adapter)
    else:
        teachers = settings.teachers if isinstance(settings, DistillSettings) else ()
        merged = [lora_of(each) for each in start.adapters or ()] or [found[each.name] for each in teachers]
        assert start.merge is not None
        found[student] = _merged_lora(start.merge, merged)
    if not unknown:
        return found, ()
    note = f"not on this machine, taken to have rank {usual.rank}: {', '.join(dict.fromkeys(unknown))}"
    return found, (note,)


def _merged_lora(method: MergeMethodSettings, merged: Sequence[LoraSettings]) -> LoraSettings:
    targets = tuple(dict.fromkeys(target for lora in merged for target in lora.target_modules))
    rank = method.rank_of([lora.rank for lora in merged])
    return LoraSettings(rank=rank, alpha=method.alpha_of(rank), target_modules=targets)


def _known_lora(adapter: str) -> LoraSettings | None:
    """Returns rank, alpha and targets of an adapter folder, or None where it is not here: on the hub, or yet
    to be trained.

    Raises:
        AdapterError: if its config is not that of a plain LoRA.
        ConfigError: if the package has no such asset.
    """
    folder = locate(adapter, key="adapter") if adapter.startswith(ASSET) else Path(adapter).expanduser()
    file = folder / CONFIG_FILE
    if not file.exists():
        return None
    config = PeftConfig.of(json.loads(file.read_text()), str(file))
    targets = config.targets or ATTENTION_PROJECTIONS
    return LoraSettings(rank=config.rank, alpha=config.alpha, target_modules=targets)
