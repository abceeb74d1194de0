"""SFT cold start: the routed teachers draw every prompt once, and the student learns their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Generator, Tensor

from flow_opd.config.base import Settings
from flow_opd.config.file.reader import as_settings
from flow_opd.config.sft import LogitNormalSigmas, SFTConfig, SFTSettings, SigmasSpec
from flow_opd.flow.path import logit_normal_sigmas, shifted_uniform_sigmas
from flow_opd.layout import SAMPLES
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.routing import check_routes
from flow_opd.method.sft import ImageSampling, SFTBatching, TeacherImages, sft_cold_start
from flow_opd.protocols import PromptEncoder, Router
from flow_opd.runs.adapters import load_lora
from flow_opd.runs.base import Base, encode_beforehand
from flow_opd.runs.identity import prompts_digest, training_identity
from flow_opd.runs.launch import check_shares, join_processes
from flow_opd.runs.prompts import as_prompts, prompts_of
from flow_opd.runs.student import place_student
from flow_opd.runs.teachers import Expert, Experts, Teacher, teacher_of
from flow_opd.runs.training import Place, Training, open_run
from flow_opd.seeding import derived_seed, generator
from flow_opd.training.progress import ProgressBar
from flow_opd.types import Prompt

GUIDANCE = 4.5  # of teachers that name none, as in a configuration


def run(settings: SFTSettings, *, resume: bool) -> Path:
    """Trains a LoRA on its teachers' images and returns the run folder; the result is in its `adapter`.

    The images stay in `samples`, for a training that goes on or starts again.
    """
    folder = open_run(settings.run)
    processes = join_processes(settings.compute)
    check_shares(settings.batch_size, processes, key="batch_size", collective=settings.compute.shard_base)
    prompts = prompts_of(settings.prompts)
    check_routes(prompts, settings.teacher_of_task())
    base = Base.load(settings.base, settings.compute, processes)
    encoder = encode_beforehand(settings.embeddings, base, prompts, folder)
    base.backbone.free_vae()
    sft(
        base,
        {
            each.name: teacher_of(each, load_lora(each.adapter, settings.base, key="teachers.adapter"))
            for each in settings.teachers
        },
        prompts,
        settings,
        rounds=settings.run.rounds,
        seed=settings.run.seed,
        encoder=encoder,
        folder=folder,
        resume=resume,
        record=settings,
    ).train()
    return folder


def sft(
    base: Base,
    teachers: Mapping[str, Teacher | Expert],
    prompts: Sequence[Prompt],
    config: SFTConfig | Mapping[str, Any] | None = None,
    *,
    rounds: int,
    router: Router | None = None,
    seed: int = 0,
    encoder: PromptEncoder | None = None,
    folder: Path | str | None = None,
    resume: bool = True,
    record: Settings | None = None,
) -> Training:
    """Lets the teachers draw what is missing, and returns a training on their images that is ready to go.

    Args:
        base: the frozen pipeline, to which the adapters are added.
        teachers: name -> teacher; an adapter or velocity field alone has the task of its name.
        prompts: what the teachers draw.
        config: images, batches, noise levels, optimizer, or a dict of its keys; None takes the defaults.
        rounds: of the whole training; each is one update.
        router: weights of the teachers for a prompt; None takes the task's own teacher.
        seed: root of all random numbers.
        encoder: encodes prompts in place of the base.
        folder: the run folder, for images, checkpoints, a log and in the end the adapter; None keeps the
            images in a temporary one, and nothing else.
        resume: goes on from the newest checkpoint in there; False forgets all of them.
        record: settings that are written as its config.yaml.

    Raises:
        ConfigError: if teachers and tasks do not match.
        DataError: if a prompt has no teacher, or a teacher no prompt.
        AdapterError: if an adapter does not fit the base.
        CheckpointError: if the folder has a damaged checkpoint, or one of another training.
    """
    config, place = as_settings(config, SFTConfig), Place.at(folder, resume, record)
    prompts, encoder = as_prompts(prompts), encoder or base.backbone
    with base.as_before():
        experts = Experts(base, teachers, guidance_scale=GUIDANCE, encoder=encoder, router=router)
        if experts.by_task:
            check_routes(prompts, experts.teacher_of_task)
        name, _ = place_student(base, None, config.lora, seed=seed)
        base.shard()
        parts = {"seed": seed, "prompts": prompts_digest(prompts), **experts.identity(None)}
        images = training_identity("images", config, ("images_per_prompt", "num_steps"), base.settings, parts)
        holder = _images_folder(place.folder)
        samples = TeacherImages(
            Path(holder.name) if isinstance(holder, TemporaryDirectory) else holder,
            images.digest,
            prompts,
            images_per_prompt=config.images_per_prompt,
        )
        student = base.policy(name, 1.0, encoder=encoder)
        source, objective = sft_cold_start(student, encoder, samples, _batching(config, prompts, seed, base))
        whole = {**parts, "rounds": rounds}
        training = Training(
            base,
            name,
            source,
            objective,
            config,
            rounds=rounds,
            updates_per_round=1,
            identity=training_identity("sft", config, SFTConfig.model_fields, base.settings, whole),
            place=place,
            title="SFT cold start",
            show=("loss",),
        )
        training.keeps = holder  # a temporary one goes when the training does
        if training.round < rounds:
            _draw(config, samples, experts, seed)
        return training


def _images_folder(run: Path | None) -> Path | TemporaryDirectory[str]:
    """Returns where the teachers' images are kept: in the run folder, or in one that goes with its object."""
    return TemporaryDirectory(prefix="flow-opd-") if run is None else run / SAMPLES


def _draw(config: SFTConfig, samples: TeacherImages, experts: Experts, seed: int) -> None:
    """Lets the teachers draw what is missing, under a progress bar."""
    base = experts.base
    sampling = ImageSampling(
        field=experts.routed,
        encoder=experts.encoder,
        latent_shape=base.backbone.latent_shape,
        sigmas=base.backbone.sigmas(config.num_steps),
        seeder=lambda prompt, image: generator(seed, "sample", prompt, image),
        batch_size=config.sample_batch_size,
        device=base.backbone.device,
        collective=base.is_sharded,
    )
    processes = base.processes
    bar = ProgressBar("teachers' images", total_steps=len(samples), show=(), shown=processes.is_main)
    samples.fill(sampling, processes=processes, on_images=lambda count: bar.on_update(count, {}))
    bar.on_end()


def _batching(config: SFTConfig, prompts: Sequence[Prompt], seed: int, base: Base) -> SFTBatching:
    """Returns what a round trains on: tasks in equal shares, no image twice before all have come once."""
    of_images = [prompt for prompt in prompts for _ in range(config.images_per_prompt)]
    return SFTBatching(
        images_of_round=PromptRounds(of_images, derived_seed(seed, "prompts"), config.batch_size).rows,
        seeder=lambda index, row: generator(seed, "sft", index, row),
        draw_sigmas=lambda count, draw: _sigmas(config.sigmas, count, draw),
        caption_dropout=config.caption_dropout,
        micro_batch_size=config.micro_batch_size,
        processes=base.processes,
    )


def _sigmas(spec: SigmasSpec, count: int, draw: Generator) -> Tensor:
    if isinstance(spec, LogitNormalSigmas):
        return logit_normal_sigmas(count, generator=draw)
    return shifted_uniform_sigmas(count, shift=spec.shift, generator=draw)
