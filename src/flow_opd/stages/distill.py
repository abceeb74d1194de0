"""Multi-teacher on-policy distillation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.sharding import shard_base
from flow_opd.config.base import Settings
from flow_opd.config.distill import AnchorSettings, DirectKLSettings, DistillSettings
from flow_opd.method.objectives import Target, WeightedTerms
from flow_opd.method.opd import OPDPolicies, direct_opd, policy_gradient_opd
from flow_opd.method.policy import Adapters, Policy
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.routing import check_routes
from flow_opd.method.walk import Walks
from flow_opd.processes import Processes
from flow_opd.protocols import Backbone, BatchSource, LoadedBackbone, PromptEncoder
from flow_opd.runs.adapters import files_of, load_lora
from flow_opd.runs.base import encode_beforehand, load_backbone
from flow_opd.runs.identity import fingerprint, prompt_files
from flow_opd.runs.launch import check_shares, join_processes
from flow_opd.runs.policies import policies_on, routed_teachers
from flow_opd.runs.prompts import load_prompts
from flow_opd.runs.student import COLD_START, cold_start_files, put_student
from flow_opd.runs.training import (
    STUDENT,
    loop_settings,
    open_run,
    record,
    resume_or_restart,
    save_student,
    train,
)
from flow_opd.runs.walks import build_walks
from flow_opd.training.seeding import derived_seed
from flow_opd.training.trainer import Trainer

ANCHOR = "anchor"


def run(settings: DistillSettings, *, resume: bool) -> Path:
    """Distils the teachers into one LoRA and returns the run folder; the result is in its `adapter`."""
    folder = open_run(settings.run)
    processes = join_processes(settings.compute)
    return distill(settings, folder, config=settings, resume=resume, processes=processes)


def distill(
    settings: DistillSettings, folder: Path, *, config: Settings, resume: bool, processes: Processes
) -> Path:
    """Distils into `folder` and returns it.

    Args:
        settings: of the distillation.
        folder: the run folder.
        config: what is written as the run's config.yaml, once nothing has been refused.
        resume: goes on from the newest checkpoint.
        processes: who shares the work.
    """
    shard = settings.compute.shard_base
    updates = settings.updates_per_round()
    check_shares(
        settings.prompts_per_round, processes, key="prompts_per_round", lockstep=shard, updates=updates
    )
    seed = settings.run.seed
    prompts = load_prompts(settings.prompts)
    check_routes(prompts, settings.teacher_of_task())
    backbone = load_backbone(settings.base, settings.compute, processes)
    encoder = encode_beforehand(settings.embeddings, backbone, prompts, folder, processes)
    backbone.free_vae()
    bank, start = bank_of(settings, backbone, processes)
    if shard:
        shard_base(backbone.transformer, processes)
    groups = PromptRounds(
        prompts, derived_seed(seed, "prompts"), settings.prompts_per_round, settings.task_shares
    )
    walks = build_walks(
        backbone,
        encoder,
        groups,
        settings.sampling,
        weights=settings.state_weights,
        seed=seed,
        micro_batch_size=settings.micro_batch_size,
        processes=processes,
    )
    source, objective = algorithm_of(settings, policies_of(settings, backbone, encoder, bank), walks)
    trainer = Trainer(
        parameters=bank.parameters(STUDENT),
        source=source,
        objective=objective,
        settings=loop_settings(settings, updates, backbone),
        folder=folder,
        processes=processes,
        identity=fingerprint(settings, settings.base, _files(settings)),
    )
    resume_or_restart(trainer, config, resume=resume)
    record(config, folder, processes)
    if processes.is_main:
        start.write(folder / COLD_START, settings.base.path)
    train(trainer, "distillation", show=("teacher_gap", "anchor_gap", "policy_gradient"))
    save_student(trainer, bank, base=settings.base.path)
    return folder


def bank_of(
    settings: DistillSettings, backbone: LoadedBackbone, processes: Processes
) -> tuple[AdapterBank, LoraWeights]:
    """Returns one base with the teachers, the anchor and the student, and the student's first weights."""
    bank = AdapterBank(backbone)
    loras = {}
    for teacher in settings.teachers:
        loras[teacher.name] = load_lora(teacher.adapter, settings.base, key="teachers.adapter")
        bank.put(teacher.name, loras[teacher.name])
    if settings.anchor is not None and settings.anchor.adapter is not None:
        bank.put(ANCHOR, load_lora(settings.anchor.adapter, settings.base, key="anchor.adapter"))
    start = put_student(
        bank,
        settings.cold_start,
        settings.lora,
        settings.base,
        seed=settings.run.seed,
        processes=processes,
        teachers=loras,
    )
    return bank, start


def _files(settings: DistillSettings) -> list[Path]:
    """Returns the files that the numbers of the training depend on."""
    named = [("teachers.adapter", teacher.adapter) for teacher in settings.teachers]
    if settings.anchor is not None and settings.anchor.adapter is not None:
        named.append(("anchor.adapter", settings.anchor.adapter))
    adapters = [file for key, name in named for file in files_of(name, settings.base, key=key)]
    start = cold_start_files(settings.cold_start, settings.base)
    return [*prompt_files(settings.prompts), *adapters, *start]


def policies_of(
    settings: DistillSettings, backbone: Backbone, encoder: PromptEncoder, bank: Adapters
) -> OPDPolicies:
    """Returns the student, the routed teachers and the anchor of the settings, on one base."""
    policy = policies_on(settings.compute, backbone, encoder, bank)
    return OPDPolicies(
        backbone=backbone,
        student=policy(adapter=STUDENT, guidance_scale=settings.sampling.guidance_scale),
        teachers=routed_teachers(settings, backbone, encoder, bank),
        anchor=None if settings.anchor is None else _anchor(settings, settings.anchor, policy),
    )


def _anchor(settings: DistillSettings, anchor: AnchorSettings, policy: Callable[..., Policy]) -> Target:
    """Returns the anchor, asked at its share of the states."""
    return Target(
        "anchor_gap",
        policy(adapter=anchor.teacher or ANCHOR, guidance_scale=anchor.guidance_scale),
        weight=anchor.weight,
        share=settings.anchor_share(anchor),
    )


def algorithm_of(
    settings: DistillSettings, policies: OPDPolicies, walks: Walks
) -> tuple[BatchSource, WeightedTerms]:
    """Returns where batches come from and what is minimised, by the objective of the settings."""
    objective = settings.objective
    if isinstance(objective, DirectKLSettings):
        return direct_opd(policies, walks)
    return policy_gradient_opd(
        policies,
        walks,
        correction=objective.name,
        updates_per_round=objective.updates_per_round,
        clip_range=objective.clip_range,
        advantage_clip=objective.advantage_clip,
    )
