"""Multi-teacher on-policy distillation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.form import LoraForm
from flow_opd.adapters.sharding import shard_base
from flow_opd.algorithms.opd import OPDPolicies, direct_opd, policy_gradient_opd
from flow_opd.assembly.adapters import files_of, load_lora
from flow_opd.assembly.base import load_backbone
from flow_opd.assembly.encoding import encode_beforehand
from flow_opd.assembly.identity import fingerprint, prompt_files
from flow_opd.assembly.launch import check_shares, join_processes
from flow_opd.assembly.prompts import load_prompts
from flow_opd.assembly.teachers import routed_teachers
from flow_opd.assembly.training import (
    STUDENT,
    loop_settings,
    open_run,
    record,
    resume_or_restart,
    save_student,
    train,
)
from flow_opd.assembly.walks import build_walks
from flow_opd.config.base import Settings
from flow_opd.config.common import LoraSettings
from flow_opd.config.distill import DirectKLSettings, DistillSettings
from flow_opd.objectives.weighted import WeightedTerms
from flow_opd.policies.policy import Adapters, Policy
from flow_opd.processes import Processes
from flow_opd.prompts.rounds import PromptRounds
from flow_opd.prompts.routing import check_routes
from flow_opd.protocols import Backbone, BatchSource, LoadedBackbone, PromptEncoder
from flow_opd.rollout.walk_batches import Walks
from flow_opd.stages.merge import merge_by, print_report
from flow_opd.training.seeding import derived_seed
from flow_opd.training.trainer import Trainer

COLD_START = "cold_start"  # folder of the student's first weights, below the run folder
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
    bank = bank_of(settings, backbone, processes)
    start = bank.weights(STUDENT)
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
        seed=seed,
        micro_batch_size=settings.micro_batch_size,
        processes=processes,
    )
    source, objective = algorithm_of(settings, policies_of(settings, backbone, encoder, bank), walks)
    trainer = Trainer(
        parameters=bank.parameters(STUDENT),
        source=source,
        objective=objective,
        settings=loop_settings(settings, updates),
        folder=folder,
        processes=processes,
        identity=fingerprint(settings, settings.base, _files(settings)),
    )
    resume_or_restart(trainer, config, resume=resume)
    record(config, folder, processes)
    if processes.is_main:
        start.write(folder / COLD_START, settings.base.path)
    train(trainer, "distillation", show=("teacher_kl", "anchor_kl", "policy_gradient"))
    save_student(trainer, bank, base=settings.base.path)
    return folder


def bank_of(settings: DistillSettings, backbone: LoadedBackbone, processes: Processes) -> AdapterBank:
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
        lora = LoraForm.of(settings.lora or LoraSettings())
        bank.add(STUDENT, lora, derived_seed(settings.run.seed, "lora"))
    elif start.adapter is not None:
        bank.put(STUDENT, load_lora(start.adapter, settings.base, key="cold_start.adapter"))
    else:
        assert start.merge is not None
        merged, report = merge_by(start.merge, loras, None, seed=settings.run.seed)
        if processes.is_main:
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


def policies_of(
    settings: DistillSettings, backbone: Backbone, encoder: PromptEncoder, bank: Adapters
) -> OPDPolicies:
    """Returns the student, the routed teachers and the anchor of the settings, on one base."""
    batching = settings.compute.guidance_batching
    policy = partial(Policy, backbone, adapters=bank, encoder=encoder, guidance_batching=batching)
    anchor = settings.anchor
    return OPDPolicies(
        backbone=backbone,
        student=policy(adapter=STUDENT, guidance_scale=settings.sampling.guidance_scale),
        teachers=routed_teachers(settings, backbone, encoder, bank),
        anchor=policy(adapter=anchor.teacher or ANCHOR, guidance_scale=anchor.guidance_scale)
        if anchor
        else None,
        anchor_weight=anchor.weight if anchor else 0.0,
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
