"""Multi-teacher on-policy distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.base import Settings
from flow_opd.config.distill import DistillConfig, DistillSettings
from flow_opd.config.file.reader import as_settings
from flow_opd.config.teachers import TaskRouterSettings
from flow_opd.method.objectives import Distance
from flow_opd.method.opd import distillation
from flow_opd.method.routing import check_routes
from flow_opd.protocols import PromptEncoder, Router
from flow_opd.runs.adapters import load_lora
from flow_opd.runs.base import Base, encode_beforehand
from flow_opd.runs.identity import part_identity, prompts_digest, training_identity
from flow_opd.runs.launch import check_shares, join_processes
from flow_opd.runs.prompts import as_prompts, prompts_of
from flow_opd.runs.student import first_weights, place_student, student_walks
from flow_opd.runs.teachers import Anchor, Expert, Experts, Teacher, anchor_of, as_anchor, teacher_of
from flow_opd.runs.training import Place, Training, open_run
from flow_opd.types import Prompt


def run(settings: DistillSettings, *, resume: bool, record: Settings | None = None) -> Path:
    """Distils the teachers into one LoRA and returns the run folder; the result is in its `adapter`.

    Args:
        settings: of the distillation.
        resume: goes on from the newest checkpoint.
        record: what is written as the run's config.yaml, if not `settings`.
    """
    folder = open_run(settings.run)
    processes = join_processes(settings.compute)
    check_shares(
        settings.prompts_per_round,
        processes,
        key="prompts_per_round",
        collective=settings.compute.shard_base,
        updates=settings.updates_per_round(),
    )
    prompts = prompts_of(settings.prompts)
    if isinstance(settings.router, TaskRouterSettings):
        check_routes(prompts, settings.teacher_of_task())
    base = Base.load(settings.base, settings.compute, processes)
    encoder = encode_beforehand(settings.embeddings, base, prompts, folder)
    base.backbone.free_vae()
    key = "teachers.adapter"
    loras = {each.name: load_lora(each.adapter, settings.base, key=key) for each in settings.teachers}
    distill(
        base,
        {each.name: teacher_of(each, loras[each.name]) for each in settings.teachers},
        prompts,
        settings,
        rounds=settings.run.rounds,
        student=first_weights(settings.cold_start, base, seed=settings.run.seed, teachers=loras),
        anchor=_anchor(settings),
        seed=settings.run.seed,
        encoder=encoder,
        folder=folder,
        resume=resume,
        record=record or settings,
    ).train()
    return folder


def distill(
    base: Base,
    teachers: Mapping[str, Teacher | Expert],
    prompts: Sequence[Prompt],
    config: DistillConfig | Mapping[str, Any] | None = None,
    *,
    rounds: int,
    student: LoraWeights | None = None,
    anchor: Anchor | Expert | None = None,
    objective: Distance | None = None,
    router: Router | None = None,
    seed: int = 0,
    encoder: PromptEncoder | None = None,
    folder: Path | str | None = None,
    resume: bool = True,
    record: Settings | None = None,
) -> Training:
    """Returns a distillation that is ready to go: train it, or go through its rounds.

    Args:
        base: the frozen pipeline, to which the adapters are added.
        teachers: name -> teacher; an adapter or velocity field alone has the task of its name.
        prompts: of the teachers' tasks.
        config: objective, walk, rounds, optimizer, or a dict of its keys; None takes the defaults.
        rounds: of the whole training.
        student: its first weights, such as a merge of the teachers; None takes a fresh adapter.
        anchor: the quality expert on all prompts; an adapter, field or teacher's name alone has lambda .02.
        objective: how far the student's velocities are from a target's, (student, target, batch) -> [M];
            None: the squared distance, or what `config` says.
        router: which teachers answer for a prompt, in which parts; None: what `config` says.
        seed: root of all random numbers.
        encoder: encodes prompts in place of the base.
        folder: the run folder, for checkpoints, a log and in the end the adapter; None keeps nothing.
        resume: goes on from the newest checkpoint in there; False forgets all of them.
        record: settings that are written as its config.yaml.

    Raises:
        ConfigError: if teachers and tasks do not match, or the walk does not suit its dynamics.
        DataError: if a prompt has no teacher, or a teacher no prompt.
        AdapterError: if an adapter does not fit the base.
        CheckpointError: if the folder has a damaged checkpoint, or one of another training.
    """
    config, place = as_settings(config, DistillConfig), Place.at(folder, resume, record)
    prompts, encoder = as_prompts(prompts), encoder or base.backbone
    scale = config.sampling.guidance_scale
    with base.as_before():
        routes = router or config.router
        experts = Experts(base, teachers, guidance_scale=scale, encoder=encoder, router=routes)
        if experts.by_task:
            check_routes(prompts, experts.teacher_of_task)
        name, start = place_student(base, student, config.lora, seed=seed)
        anchor = as_anchor(anchor)
        policies = experts.policies(name, anchor, default_share=config.default_anchor_share())
        base.shard()
        walks = student_walks(
            base,
            encoder,
            prompts,
            config,
            per_round=config.prompts_per_round,
            weights=config.state_weights,
            seed=seed,
        )
        source, terms = distillation(config, policies, walks, objective)
        parts = {
            "rounds": rounds,
            "seed": seed,
            "prompts": prompts_digest(prompts),
            **experts.identity(anchor),
            "first_weights": start.digest(),
            "distance": None if objective is None else part_identity(objective),
        }
        return Training(
            base,
            name,
            source,
            terms,
            config,
            rounds=rounds,
            updates_per_round=config.updates_per_round(),
            identity=training_identity("distill", config, DistillConfig.model_fields, base.settings, parts),
            place=place,
            title="distillation",
            show=("teacher_gap", "anchor_gap", "policy_gradient"),
        )


def _anchor(settings: DistillSettings) -> Anchor | None:
    """Returns the anchor that the settings describe."""
    asked = settings.anchor
    if asked is None:
        return None
    expert: Expert
    if asked.teacher is not None:
        expert = asked.teacher
    else:
        assert asked.adapter is not None
        expert = load_lora(asked.adapter, settings.base, key="anchor.adapter")
    return anchor_of(asked, expert)
