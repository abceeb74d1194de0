"""Builds the miniature's pictures, VAE and base from seeds; each resumes where it was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor

from flow_opd.backbones.loading import load_backbone
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.config.miniature import MiniatureSettings, PartSettings
from flow_opd.files import atomic_folder
from flow_opd.flow.path import logit_normal_sigmas, shifted_uniform_sigmas
from flow_opd.layout import SUMMARY
from flow_opd.method.objectives import VelocityMatching, WeightedTerms
from flow_opd.method.policy import Policy
from flow_opd.miniature.autoencoder import (
    AutoencoderLoss,
    PictureBatches,
    as_pixels,
    new_autoencoder,
    set_latent_scale,
)
from flow_opd.miniature.base import SHIFT, CaptionedLatents, base_parameters, new_pipeline
from flow_opd.miniature.dataset import dataset
from flow_opd.miniature.vocabulary import vocabulary
from flow_opd.quiet import quiet_loading
from flow_opd.stages.miniature.parts import is_finished, loop, part_identity, summarise, train_part
from flow_opd.training.trainer import Trainer

PIPELINE = "pipeline"  # folder of a part's result, a diffusers pipeline


def pictures(settings: MiniatureSettings) -> tuple[np.ndarray, list[str]]:
    """Returns the training set, [N, 32, 32, 3] uint8 and N captions; drawn once and kept on disk."""
    folder = settings.run.out / "data"
    if not is_finished(folder, "data", settings):
        samples = dataset(settings.run.seed, 0, settings.pictures, workers=os.cpu_count() or 1)
        with atomic_folder(folder) as staging:
            np.save(staging / "pictures.npy", samples.images)
            (staging / "captions.json").write_text(json.dumps(samples.captions))
            (staging / SUMMARY).write_text(json.dumps({"identity": part_identity("data", settings)}))
    return np.load(folder / "pictures.npy", mmap_mode="r"), json.loads((folder / "captions.json").read_text())


def build_autoencoder(settings: MiniatureSettings) -> Path:
    """Trains the VAE and returns its diffusers folder."""
    folder = settings.run.out / "vae"
    finished = folder / "model"
    if is_finished(folder, "vae", settings):
        return finished
    images, _ = pictures(settings)
    vae = new_autoencoder(settings.run.seed)
    trainer = Trainer(
        parameters=dict(vae.named_parameters()),
        source=PictureBatches(images, settings.vae.batch_size, settings.run.seed),
        objective=AutoencoderLoss(vae),
        settings=loop(settings.vae, settings, ema_decay=0.99),
        folder=folder,
        identity=part_identity("vae", settings),
    )
    train_part(trainer, "autoencoder")
    assert trainer.average is not None
    with trainer.average.applied():
        set_latent_scale(vae, as_pixels(np.array(images[:2048])))
        with atomic_folder(finished) as staging:
            vae.save_pretrained(staging)
    summarise(trainer)
    return finished


def build_base(settings: MiniatureSettings) -> Path:
    """Pretrains the base by velocity matching and returns its pipeline folder, stored in float16.

    Noise levels are those of sampling, the highest most often: layouts and colours come first.
    """
    folder = settings.run.out / "base"
    if not is_finished(folder, "base", settings):
        vae = AutoencoderKL.from_pretrained(build_autoencoder(settings)).requires_grad_(False)
        backbone = SD3Backbone(new_pipeline(vae, vocabulary(), seed=settings.run.seed), max_sequence_length=0)
        _train_base(settings, "base", settings.base, backbone, partial(_sampling_sigmas, shift=SHIFT))
    return folder / PIPELINE


def build_refined(settings: MiniatureSettings) -> Path:
    """Continues the base with more of the middle noise levels, where outlines become sharp; returns it."""
    folder = settings.run.out / "refine"
    if not is_finished(folder, "refine", settings):
        base = BaseModelSettings(path=str(build_base(settings)), max_sequence_length=0)
        backbone = load_backbone(base, ComputeSettings(device="cpu"))
        assert isinstance(backbone, SD3Backbone)
        _train_base(settings, "refine", settings.refine, backbone, _middle_sigmas)
    return folder / PIPELINE


def _sampling_sigmas(count: int, draw: Generator, *, shift: float) -> Tensor:
    return shifted_uniform_sigmas(count, shift=shift, generator=draw)


def _middle_sigmas(count: int, draw: Generator) -> Tensor:
    """Half of the levels from the middle; the others as in sampling, so that its start is not forgotten."""
    middle, others = logit_normal_sigmas(count, generator=draw), _sampling_sigmas(count, draw, shift=SHIFT)
    return torch.where(torch.arange(count) % 2 == 0, middle, others)


def _train_base(
    settings: MiniatureSettings,
    name: str,
    part: PartSettings,
    backbone: SD3Backbone,
    draw_sigmas: Callable[[int, Generator], Tensor],
) -> None:
    """Trains the backbone's pipeline by velocity matching and saves the average into the part's folder."""
    folder = settings.run.out / name
    images, captions = pictures(settings)
    trainer = Trainer(
        parameters=base_parameters(backbone.pipe),
        source=CaptionedLatents(
            backbone=backbone,
            latents=_encode_all(backbone, images),
            captions=captions,
            batch_size=part.batch_size,
            seed=settings.run.seed,
            purpose=name,
            draw_sigmas=draw_sigmas,
        ),
        objective=WeightedTerms(Policy(backbone), [(1.0, VelocityMatching())]),
        settings=loop(part, settings, ema_decay=0.999),
        folder=folder,
        identity=part_identity(name, settings),
    )
    train_part(trainer, name)
    assert trainer.average is not None
    with trainer.average.applied(), atomic_folder(folder / PIPELINE) as staging, quiet_loading():
        backbone.pipe.to(torch.float16).save_pretrained(staging)
    summarise(trainer)


def _encode_all(backbone: SD3Backbone, images: np.ndarray) -> torch.Tensor:
    parts = [
        backbone.encode_images(as_pixels(np.array(images[start : start + 512])) / 2 + 0.5).half()
        for start in range(0, len(images), 512)
    ]
    return torch.cat(parts)
