"""Trains a specialist by Flow-GRPO."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from flow_opd.adapters.bank import AdapterBank
from flow_opd.algorithms.grpo import flow_grpo
from flow_opd.config.teacher import TeacherSettings
from flow_opd.policies.policy import Policy
from flow_opd.prompts.batches import PromptGroups
from flow_opd.protocols import Backbone
from flow_opd.rewards.table import WeightedRewards
from flow_opd.stages.assembly import (
    build_reward,
    build_walks,
    fingerprint,
    load_backbone,
    load_prompts,
    lora_settings,
    prompt_files,
    reward_files,
)
from flow_opd.stages.training import STUDENT, open_run, record, resume_or_restart, save_student, train
from flow_opd.training.seeding import derived_seed, generator
from flow_opd.training.trainer import LoopSettings, Trainer


def run(settings: TeacherSettings, *, resume: bool) -> Path:
    """Trains one LoRA on one reward and returns the run folder; the result is in its `adapter`."""
    folder = open_run(settings.run)
    seed = settings.run.seed
    prompts = load_prompts(settings.prompts)
    scorer = WeightedRewards(
        [(spec.weight, build_reward(spec)) for spec in settings.rewards], must_apply=True
    )
    backbone = load_backbone(settings.base, settings.compute)
    bank = AdapterBank(backbone)
    bank.add(STUDENT, lora_settings(settings.lora), derived_seed(seed, "lora"))
    bank.train(STUDENT)
    source, objective = flow_grpo(
        _policy(settings, backbone, bank, STUDENT),
        _policy(settings, backbone, bank, None),
        backbone,
        build_walks(
            backbone,
            PromptGroups(prompts, derived_seed(seed, "prompts"), settings.groups_per_round),
            settings.sampling,
            seed=seed,
            micro_batch_size=settings.micro_batch_size,
        ),
        scorer,
        group_size=settings.group_size,
        shared_start=settings.shared_start,
        steps_of_round=partial(_steps_of_round, settings),
        drawn_from=range(*settings.trained_range()),
        balanced_steps=settings.balanced_steps,
        updates_per_round=settings.updates_per_round,
        clip_range=settings.clip_range,
        advantage_clip=settings.advantage_clip,
        kl_weight=settings.kl_weight,
    )
    trainer = Trainer(
        parameters=bank.parameters(STUDENT),
        source=source,
        objective=objective,
        settings=LoopSettings(
            rounds=settings.run.rounds,
            updates_per_round=settings.updates_per_round,
            optimizer=settings.optimizer,
            ema=settings.ema,
            checkpoint=settings.checkpoint,
        ),
        folder=folder,
        identity=fingerprint(
            settings, settings.base, [*prompt_files(settings.prompts), *reward_files(settings.rewards)]
        ),
    )
    resume_or_restart(trainer, resume=resume)
    record(settings, folder)
    train(trainer, f"teacher {folder.name}", show=("reward", "reference_kl", "clipped"))
    save_student(trainer, bank, base=settings.base.path)
    return folder


def _policy(settings: TeacherSettings, backbone: Backbone, bank: AdapterBank, adapter: str | None) -> Policy:
    return Policy(
        backbone,
        adapters=bank,
        adapter=adapter,
        guidance_scale=settings.sampling.guidance_scale,
        guidance_batching=settings.compute.guidance_batching,
    )


def _steps_of_round(settings: TeacherSettings, index: int) -> list[int]:
    """Returns the trained steps of a round: all of them, or a random choice, in order."""
    steps = list(range(*settings.trained_range()))
    count = settings.steps_per_round or len(steps)
    order = torch.randperm(len(steps), generator=generator(settings.run.seed, "steps", index))
    return sorted(steps[place] for place in order[:count].tolist())
