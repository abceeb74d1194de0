"""Trains by Flow-GRPO: a teacher on its own reward, or GRPO-Mix on the rewards of several tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.base import Settings
from flow_opd.config.file.reader import as_settings
from flow_opd.config.state_weights import TransitionWeightsSettings
from flow_opd.config.teacher import GRPOConfig, TeacherSettings
from flow_opd.method import grpo as method
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.routing import check_judged
from flow_opd.protocols import PromptEncoder, Reward
from flow_opd.rewards.table import FunctionReward, TrainingReward, TrainingRewards, as_rewards, build_rewards
from flow_opd.runs.base import Base, device_of, encode_beforehand
from flow_opd.runs.identity import part_identity, prompts_digest, rewards_identity, training_identity
from flow_opd.runs.launch import check_shares, join_processes
from flow_opd.runs.prompts import as_prompts, prompts_of
from flow_opd.runs.student import first_weights, place_student, student_walks
from flow_opd.runs.training import Place, Training, open_run
from flow_opd.types import Prompt


def run(settings: TeacherSettings, *, resume: bool) -> Path:
    """Trains one LoRA on its rewards and returns the run folder; the result is in its `adapter`."""
    folder = open_run(settings.run)
    processes = join_processes(settings.compute)
    check_shares(
        settings.groups_per_round * settings.group_size,
        processes,
        key="groups_per_round",
        collective=settings.compute.shard_base,
        updates=settings.updates_per_round,
    )
    prompts = prompts_of(settings.prompts)
    check_judged(prompts, {spec.name: spec.tasks for spec in settings.rewards})
    PromptRounds(
        prompts, 0, settings.groups_per_round, settings.task_shares
    )  # refuses shares that do not fit
    rewards = build_rewards(settings.rewards, device=device_of(settings.compute, processes))
    base = Base.load(settings.base, settings.compute, processes)
    encoder = encode_beforehand(settings.embeddings, base, prompts, folder)
    grpo(
        base,
        rewards,
        prompts,
        settings,
        rounds=settings.run.rounds,
        student=first_weights(settings.cold_start, base, seed=settings.run.seed),
        seed=settings.run.seed,
        encoder=encoder,
        folder=folder,
        resume=resume,
        record=settings,
        rewards_known_by=rewards_identity(settings.rewards),
    ).train()
    return folder


def grpo(
    base: Base,
    rewards: Sequence[TrainingReward | Reward | Callable[..., Any]],
    prompts: Sequence[Prompt | str],
    config: GRPOConfig | Mapping[str, Any] | None = None,
    *,
    rounds: int,
    student: LoraWeights | None = None,
    seed: int = 0,
    encoder: PromptEncoder | None = None,
    folder: Path | str | None = None,
    resume: bool = True,
    record: Settings | None = None,
    rewards_known_by: Mapping[str, Any] | None = None,
) -> Training:
    """Returns a training by Flow-GRPO that is ready to go: train it, or go through its rounds.

    Args:
        base: the frozen pipeline, to which the adapter is added.
        rewards: each judges the prompts of its tasks. A plain function may be one: (images
            [B, 3, height, width] in [0, 1], B prompts) -> [B].
        prompts: of the rewards' tasks; a sentence alone has none.
        config: groups, advantages, walk, clip, optimizer, or a dict of its keys; None takes the defaults.
        rounds: of the whole training.
        student: its first weights; None takes a fresh adapter. The KL's reference stays the bare base.
        seed: root of all random numbers.
        encoder: encodes prompts in place of the base.
        folder: the run folder, for checkpoints, a log and in the end the adapter; None keeps nothing.
        resume: goes on from the newest checkpoint in there; False forgets all of them.
        record: settings that are written as its config.yaml.
        rewards_known_by: JSON values that say what the rewards' numbers depend on; None takes their code.

    Raises:
        ConfigError: if the walk does not suit its dynamics.
        DataError: if a prompt has no reward, or a reward no prompt.
        AdapterError: if an adapter does not fit the base.
        CheckpointError: if the folder has a damaged checkpoint, or one of another training.
    """
    config, place = as_settings(config, GRPOConfig), Place.at(folder, resume, record)
    prompts, encoder = as_prompts(prompts), encoder or base.backbone
    judges = as_rewards(rewards)
    check_judged(prompts, {one.reward.name: one.tasks for one in judges})
    scale = config.sampling.guidance_scale
    with base.as_before():
        name, start = place_student(base, student, config.lora, seed=seed)
        base.shard()
        walks = student_walks(
            base,
            encoder,
            prompts,
            config,
            per_round=config.groups_per_round,
            weights=TransitionWeightsSettings(),  # of the KL to the base, which beta is the weight of
            seed=seed,
        )
        own, bare = (base.policy(adapter, scale, encoder=encoder) for adapter in (name, None))
        scorer = TrainingRewards(judges)
        source, objective = method.grpo(config, own, bare, base.backbone, walks, scorer, seed=seed)
        parts = {
            "rounds": rounds,
            "seed": seed,
            "prompts": prompts_digest(prompts),
            "rewards": rewards_known_by or {one.reward.name: _known_by(one) for one in judges},
            "first_weights": start.digest(),
        }
        return Training(
            base,
            name,
            source,
            objective,
            config,
            rounds=rounds,
            updates_per_round=config.updates_per_round,
            identity=training_identity("grpo", config, GRPOConfig.model_fields, base.settings, parts),
            place=place,
            title="GRPO" if place.folder is None else f"teacher {place.folder.name}",
            show=("reward", "reference_kl", "clipped"),
        )


def _known_by(one: TrainingReward) -> list[Any]:
    """Returns what a reward is known by: its code, or that of its function, its weight and its tasks."""
    reward = one.reward
    code = part_identity(reward.function if isinstance(reward, FunctionReward) else reward)
    return [code, one.weight, one.tasks]
