"""SFT cold start: the routed teachers draw every prompt once, and the student learns their images."""

from __future__ import annotations

from pathlib import Path

from torch import Generator, Tensor

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.form import LoraForm
from flow_opd.adapters.sharding import shard_base
from flow_opd.config.sft import LogitNormalSigmas, SFTSettings, SigmasSpec
from flow_opd.flow.path import logit_normal_sigmas, shifted_uniform_sigmas
from flow_opd.method.policy import Policy
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.routing import check_routes
from flow_opd.method.sft import sft_cold_start
from flow_opd.method.teacher_images import ImageSampling, SFTBatching, TeacherImages
from flow_opd.processes import Processes
from flow_opd.protocols import Backbone, LoadedBackbone, PromptEncoder
from flow_opd.runs.adapters import files_of, load_lora
from flow_opd.runs.base import encode_beforehand, load_backbone
from flow_opd.runs.identity import fingerprint, hashed, prompt_files
from flow_opd.runs.launch import check_shares, join_processes
from flow_opd.runs.policies import routed_teachers
from flow_opd.runs.prompts import load_prompts
from flow_opd.runs.training import (
    STUDENT,
    loop_settings,
    open_run,
    record,
    resume_or_restart,
    save_student,
    train,
)
from flow_opd.training.progress import ProgressBar
from flow_opd.training.seeding import derived_seed, generator
from flow_opd.training.trainer import Trainer
from flow_opd.types import Prompt

SAMPLES = "samples"  # folder of the teachers' images, below the run folder


def run(settings: SFTSettings, *, resume: bool) -> Path:
    """Trains a LoRA on its teachers' images and returns the run folder; the result is in its `adapter`.

    The images stay in `samples`, for a training that goes on or starts anew.
    """
    folder = open_run(settings.run)
    processes = join_processes(settings.compute)
    shard = settings.compute.shard_base
    check_shares(settings.batch_size, processes, key="batch_size", lockstep=shard)
    prompts = load_prompts(settings.prompts)
    check_routes(prompts, settings.teacher_of_task())
    backbone = load_backbone(settings.base, settings.compute, processes)
    encoder = encode_beforehand(settings.embeddings, backbone, prompts, folder, processes)
    backbone.free_vae()
    bank = _bank(settings, backbone)
    if shard:
        shard_base(backbone.transformer, processes)
    files = _files(settings)
    samples = TeacherImages(
        folder / SAMPLES,
        _samples_identity(settings, files),
        prompts,
        images_per_prompt=settings.images_per_prompt,
    )
    student = Policy(backbone, adapters=bank, adapter=STUDENT, guidance_scale=1.0)
    source, objective = sft_cold_start(student, encoder, samples, _batching(settings, prompts, processes))
    trainer = Trainer(
        parameters=bank.parameters(STUDENT),
        source=source,
        objective=objective,
        settings=loop_settings(settings, 1, backbone),
        folder=folder,
        processes=processes,
        identity=fingerprint(settings, settings.base, files),
    )
    resume_or_restart(trainer, settings, resume=resume)
    record(settings, folder, processes)
    if trainer.progress.round < settings.run.rounds:
        _draw(settings, samples, backbone, encoder, bank, processes)
    train(trainer, "SFT cold start", show=("loss",))
    save_student(trainer, bank, base=settings.base.path)
    return folder


def _bank(settings: SFTSettings, backbone: LoadedBackbone) -> AdapterBank:
    """Returns one base with the teachers and a fresh student."""
    bank = AdapterBank(backbone)
    for teacher in settings.teachers:
        bank.put(teacher.name, load_lora(teacher.adapter, settings.base, key="teachers.adapter"))
    bank.add(STUDENT, LoraForm.of(settings.lora), derived_seed(settings.run.seed, "lora"))
    bank.train(STUDENT)
    return bank


def _files(settings: SFTSettings) -> list[Path]:
    """Returns the files that the numbers of the training depend on."""
    adapters = [
        file
        for teacher in settings.teachers
        for file in files_of(teacher.adapter, settings.base, key="teachers.adapter")
    ]
    return [*prompt_files(settings.prompts), *adapters]


def _samples_identity(settings: SFTSettings, files: list[Path]) -> str:
    """Returns a hash of what decides the images: other training settings may share them."""
    deciding = {"base", "teachers", "prompts", "images_per_prompt", "num_steps"}
    relevant = settings.model_dump(mode="json", include=deciding)
    return hashed({**relevant, "seed": settings.run.seed}, settings.base, files)


def _draw(
    settings: SFTSettings,
    samples: TeacherImages,
    backbone: Backbone,
    encoder: PromptEncoder,
    bank: AdapterBank,
    processes: Processes,
) -> None:
    """Lets the teachers draw what is missing, under a progress bar."""
    sampling = ImageSampling(
        field=routed_teachers(settings, backbone, encoder, bank),
        encoder=encoder,
        latent_shape=backbone.latent_shape,
        sigmas=backbone.sigmas(settings.num_steps),
        seeder=lambda prompt, image: generator(settings.run.seed, "sample", prompt, image),
        batch_size=settings.sample_batch_size,
        device=backbone.device,
        lockstep=settings.compute.shard_base,
    )
    bar = ProgressBar("teachers' images", total_steps=len(samples), show=(), shown=processes.is_main)
    samples.fill(sampling, processes=processes, on_images=lambda count: bar.on_update(count, {}))
    bar.on_end()


def _batching(settings: SFTSettings, prompts: list[Prompt], processes: Processes) -> SFTBatching:
    """Returns what a round trains on: all tasks alike, every image of a task once before any comes again."""
    seed = settings.run.seed
    of_images = [prompt for prompt in prompts for _ in range(settings.images_per_prompt)]
    return SFTBatching(
        images_of_round=PromptRounds(of_images, derived_seed(seed, "prompts"), settings.batch_size).rows,
        seeder=lambda index, row: generator(seed, "sft", index, row),
        draw_sigmas=lambda count, draw: _sigmas(settings.sigmas, count, draw),
        caption_dropout=settings.caption_dropout,
        micro_batch_size=settings.micro_batch_size,
        processes=processes,
    )


def _sigmas(spec: SigmasSpec, count: int, draw: Generator) -> Tensor:
    if isinstance(spec, LogitNormalSigmas):
        return logit_normal_sigmas(count, generator=draw)
    return shifted_uniform_sigmas(count, shift=spec.shift, generator=draw)
