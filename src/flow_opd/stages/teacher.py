"""Trains by Flow-GRPO: a specialist on its own reward, or GRPO-Mix on the rewards of several tasks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.sharding import shard_base
from flow_opd.config.state_weights import NamedStateWeights
from flow_opd.config.teacher import TeacherSettings
from flow_opd.flow.advantages import NORMALIZATIONS
from flow_opd.method.groups import GroupSampling
from flow_opd.method.grpo import flow_grpo
from flow_opd.method.objectives import WeightedTerms
from flow_opd.method.policy import Adapters, Policy
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.routing import check_judged
from flow_opd.method.walk import Walks
from flow_opd.protocols import Backbone, BatchSource, PromptEncoder, Scorer, VelocityField
from flow_opd.runs.base import device_of, encode_beforehand, load_backbone
from flow_opd.runs.identity import fingerprint, prompt_files, reward_files
from flow_opd.runs.launch import check_shares, join_processes
from flow_opd.runs.policies import policies_on
from flow_opd.runs.prompts import load_prompts
from flow_opd.runs.rewards import build_rewards
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
from flow_opd.runs.walks import build_walks, relative_weights
from flow_opd.training.seeding import derived_seed, generator
from flow_opd.training.trainer import Trainer


def run(settings: TeacherSettings, *, resume: bool) -> Path:
    """Trains one LoRA on its rewards and returns the run folder; the result is in its `adapter`."""
    folder = open_run(settings.run)
    processes = join_processes(settings.compute)
    images = settings.groups_per_round * settings.group_size
    shard = settings.compute.shard_base
    updates = settings.updates_per_round
    check_shares(images, processes, key="groups_per_round", lockstep=shard, updates=updates)
    prompts = load_prompts(settings.prompts)
    check_judged(prompts, {spec.name: spec.tasks for spec in settings.rewards})
    seed = settings.run.seed
    groups = PromptRounds(
        prompts, derived_seed(seed, "prompts"), settings.groups_per_round, settings.task_shares
    )
    scorer = build_rewards(settings.rewards, device=device_of(settings.compute, processes))
    backbone = load_backbone(settings.base, settings.compute, processes)
    encoder = encode_beforehand(settings.embeddings, backbone, prompts, folder, processes)
    bank = AdapterBank(backbone)
    start = put_student(
        bank, settings.cold_start, settings.lora, settings.base, seed=seed, processes=processes
    )
    if shard:
        shard_base(backbone.transformer, processes)
    walks = build_walks(
        backbone,
        encoder,
        groups,
        settings.sampling,
        weights=NamedStateWeights(name="transition"),  # of the KL to the base, which beta is the weight of
        seed=seed,
        micro_batch_size=settings.micro_batch_size,
        processes=processes,
    )
    student = policy_of(settings, backbone, encoder, bank, STUDENT)
    reference = policy_of(settings, backbone, encoder, bank, None)
    source, objective = algorithm_of(settings, student, reference, backbone, walks, scorer)
    files = [
        *prompt_files(settings.prompts),
        *reward_files(settings.rewards),
        *cold_start_files(settings.cold_start, settings.base),
    ]
    trainer = Trainer(
        parameters=bank.parameters(STUDENT),
        source=source,
        objective=objective,
        settings=loop_settings(settings, updates, backbone),
        folder=folder,
        processes=processes,
        identity=fingerprint(settings, settings.base, files),
    )
    resume_or_restart(trainer, settings, resume=resume)
    record(settings, folder, processes)
    if processes.is_main:
        start.write(folder / COLD_START, settings.base.path)
    train(trainer, f"teacher {folder.name}", show=("reward", "reference_kl", "clipped"))
    save_student(trainer, bank, base=settings.base.path)
    return folder


def policy_of(
    settings: TeacherSettings,
    backbone: Backbone,
    encoder: PromptEncoder,
    bank: Adapters,
    adapter: str | None,
) -> Policy:
    """Returns the student or (without adapter) the reference."""
    policy = policies_on(settings.compute, backbone, encoder, bank)
    return policy(adapter=adapter, guidance_scale=settings.sampling.guidance_scale)


def algorithm_of(
    settings: TeacherSettings,
    student: VelocityField,
    reference: VelocityField,
    backbone: Backbone,
    walks: Walks,
    scorer: Scorer,
) -> tuple[BatchSource, WeightedTerms]:
    """Returns where batches come from and what is minimised."""
    sampling = GroupSampling(
        group_size=settings.group_size,
        shared_start=settings.shared_start,
        steps_of_round=partial(_steps_of_round, settings),
        drawn_from=range(*settings.trained_range()),
        advantages=partial(
            NORMALIZATIONS.get(settings.reward_normalization),
            round_spread=settings.advantage_spread == "round",
        ),
        advantage_clip=settings.advantage_clip,
        state_weights=relative_weights(settings.state_weights, settings.sampling.noise_level),
        updates_per_round=settings.updates_per_round,
    )
    return flow_grpo(
        student,
        reference,
        backbone,
        walks,
        scorer,
        sampling,
        clip_range=settings.clip_range,
        kl_weight=settings.kl_weight,
    )


def _steps_of_round(settings: TeacherSettings, index: int) -> list[int]:
    """Returns the trained steps of a round: all of them, or a random choice, in order."""
    steps = list(range(*settings.trained_range()))
    count = settings.steps_per_round or len(steps)
    order = torch.randperm(len(steps), generator=generator(settings.run.seed, "steps", index))
    return sorted(steps[place] for place in order[:count].tolist())
