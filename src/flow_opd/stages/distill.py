"""Multi-teacher on-policy distillation."""

from __future__ import annotations

from pathlib import Path

from flow_opd.adapters.bank import AdapterBank
from flow_opd.algorithms.opd import Cast, direct_opd, policy_gradient_opd
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.base import Settings
from flow_opd.config.common import LoraSettings
from flow_opd.config.distill import DirectKLSettings, DistillSettings
from flow_opd.objectives.weighted import WeightedTerms
from flow_opd.policies.policy import Policy
from flow_opd.policies.routed import RoutedTeachers
from flow_opd.prompts.batches import PromptGroups
from flow_opd.prompts.routing import HardRouter, check_routes
from flow_opd.protocols import BatchSource
from flow_opd.rollout.walks import Walks
from flow_opd.stages.adapters import files_of, load_lora
from flow_opd.stages.assembly import (
    build_walks,
    fingerprint,
    load_backbone,
    load_prompts,
    lora_settings,
    prompt_files,
)
from flow_opd.stages.merge import merge_by, print_report
from flow_opd.stages.training import (
    ADAPTER,
    STUDENT,
    open_run,
    record,
    resume_or_restart,
    save_student,
    train,
)
from flow_opd.training.seeding import derived_seed
from flow_opd.training.trainer import LoopSettings, Trainer

COLD_START = "cold_start"  # folder of the student's first weights, below the run folder
ANCHOR = "anchor"


def run(settings: DistillSettings, *, resume: bool) -> Path:
    """Distils the teachers into one LoRA and returns the run folder; the result is in its `adapter`."""
    return distill(settings, open_run(settings.run), config=settings, resume=resume)


def distill(settings: DistillSettings, folder: Path, *, config: Settings, resume: bool) -> Path:
    """Distils into `folder` and returns it.

    Args:
        settings: of the distillation.
        folder: the run folder.
        config: what is written as the run's config.yaml, once nothing has been refused.
        resume: goes on from the newest checkpoint.
    """
    seed = settings.run.seed
    prompts = load_prompts(settings.prompts)
    check_routes(prompts, settings.teacher_of_task())
    backbone = load_backbone(settings.base)
    bank = _bank(settings, backbone)
    start = bank.weights(STUDENT)
    groups = PromptGroups(
        prompts, derived_seed(seed, "prompts"), settings.prompts_per_round, settings.task_shares
    )
    walks = build_walks(
        backbone, groups, settings.sampling, seed=seed, micro_batch_size=settings.micro_batch_size
    )
    source, objective = _algorithm(settings, _cast(settings, backbone, bank), walks)
    trainer = Trainer(
        parameters=bank.parameters(STUDENT),
        source=source,
        objective=objective,
        settings=LoopSettings(
            rounds=settings.run.rounds,
            updates_per_round=settings.updates_per_round(),
            optimizer=settings.optimizer,
            ema=settings.ema,
            checkpoint=settings.checkpoint,
        ),
        folder=folder,
        identity=fingerprint(settings, settings.base, _files(settings)),
    )
    resume_or_restart(trainer, resume=resume)
    record(config, folder)
    start.write(folder / COLD_START, settings.base.path)
    train(trainer, "distillation", show=("teacher_kl", "anchor_kl", "policy_gradient"))
    save_student(trainer, bank, base=settings.base.path)
    return folder


def _bank(settings: DistillSettings, backbone: SD3Backbone) -> AdapterBank:
    """Returns one base with the teachers, the anchor and the student at its cold start."""
    bank = AdapterBank(backbone)
    loras = []
    for teacher in settings.teachers:
        loras.append(load_lora(teacher.adapter, settings.base, key="teachers.adapter"))
        bank.put(teacher.name, loras[-1])
    if settings.anchor is not None and settings.anchor.adapter is not None:
        bank.put(ANCHOR, load_lora(settings.anchor.adapter, settings.base, key="anchor.adapter"))
    start = settings.cold_start
    if start is None:
        lora = lora_settings(settings.lora or LoraSettings())
        bank.add(STUDENT, lora, derived_seed(settings.run.seed, "lora"))
    elif start.adapter is not None:
        bank.put(STUDENT, load_lora(start.adapter, settings.base, key="cold_start.adapter"))
    else:
        assert start.merge is not None
        merged, report = merge_by(start.merge, loras, None, seed=settings.run.seed)
        print_report(report, [teacher.name for teacher in settings.teachers])
        bank.put(STUDENT, merged)
    bank.train(STUDENT)
    return bank


def _files(settings: DistillSettings) -> list[Path]:
    """Returns the files that the numbers of the training depend on."""
    named = [("teachers.adapter", teacher.adapter) for teacher in settings.teachers]
    if settings.anchor is not None and settings.anchor.adapter is not None:
        named.append(("anchor.adapter", settings.anchor.adapter))
    if settings.cold_start is not None and settings.cold_start.adapter is not None:
        named.append(("cold_start.adapter", settings.cold_start.adapter))
    adapters = [file for key, name in named for file in files_of(name, settings.base, key=key)]
    return [*prompt_files(settings.prompts), *adapters]


def _cast(settings: DistillSettings, backbone: SD3Backbone, bank: AdapterBank) -> Cast:
    def policy(adapter: str, guidance_scale: float) -> Policy:
        return Policy(backbone, adapters=bank, adapter=adapter, guidance_scale=guidance_scale)

    teachers = {each.name: policy(each.name, each.guidance_scale) for each in settings.teachers}
    anchor = settings.anchor
    return Cast(
        backbone=backbone,
        student=policy(STUDENT, settings.sampling.guidance_scale),
        teachers=RoutedTeachers(teachers, HardRouter(settings.teacher_of_task())),
        anchor=policy(anchor.teacher or ANCHOR, anchor.guidance_scale) if anchor else None,
        anchor_weight=anchor.weight if anchor else 0.0,
    )


def _algorithm(settings: DistillSettings, cast: Cast, walks: Walks) -> tuple[BatchSource, WeightedTerms]:
    objective = settings.objective
    if isinstance(objective, DirectKLSettings):
        return direct_opd(cast, walks)
    return policy_gradient_opd(
        cast,
        walks,
        correction=objective.name,
        updates_per_round=objective.updates_per_round,
        clip_range=objective.clip_range,
        advantage_clip=objective.advantage_clip,
    )


__all__ = ["ADAPTER", "COLD_START", "run"]
