"""Builds the miniature's pictures, VAE and base from seeds; each resumes where it was killed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from flow_opd.backbones.quiet import quiet_loading
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.miniature import MiniatureSettings
from flow_opd.files import atomic_folder
from flow_opd.miniature.autoencoder import (
    AutoencoderLoss,
    PictureBatches,
    as_pixels,
    new_autoencoder,
    set_latent_scale,
)
from flow_opd.miniature.base import CaptionedLatents, base_parameters, new_pipeline
from flow_opd.miniature.dataset import dataset
from flow_opd.miniature.vocabulary import vocabulary
from flow_opd.objectives.velocity_matching import VelocityMatching
from flow_opd.objectives.weighted import WeightedTerms
from flow_opd.policies.policy import Policy
from flow_opd.stages.parts import fingerprint, loop, summarise, train_part
from flow_opd.training.trainer import Trainer


def pictures(settings: MiniatureSettings) -> tuple[np.ndarray, list[str]]:
    """Returns the training set, [N, 32, 32, 3] uint8 and N captions; drawn once and kept on disk."""
    folder = settings.run.out / "data"
    if not folder.exists():
        samples = dataset(settings.run.seed, 0, settings.pictures, workers=os.cpu_count() or 1)
        with atomic_folder(folder) as staging:
            np.save(staging / "pictures.npy", samples.images)
            (staging / "captions.json").write_text(json.dumps(samples.captions))
    return np.load(folder / "pictures.npy", mmap_mode="r"), json.loads((folder / "captions.json").read_text())


def build_autoencoder(settings: MiniatureSettings) -> Path:
    """Trains the VAE and returns its diffusers folder."""
    folder = settings.run.out / "vae"
    finished = folder / "model"
    if finished.exists():
        return finished
    images, _ = pictures(settings)
    vae = new_autoencoder(settings.run.seed)
    trainer = Trainer(
        parameters=dict(vae.named_parameters()),
        source=PictureBatches(images, settings.vae.batch_size, settings.run.seed),
        objective=AutoencoderLoss(vae),
        settings=loop(settings.vae, settings, ema_decay=0.99),
        folder=folder,
        identity=fingerprint("vae", settings.vae, settings),
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
    """Pretrains the base by velocity matching and returns its pipeline folder, stored in float16."""
    folder = settings.run.out / "base"
    finished = folder / "pipeline"
    if finished.exists():
        return finished
    images, captions = pictures(settings)
    vae = AutoencoderKL.from_pretrained(build_autoencoder(settings)).requires_grad_(False)
    pipe = new_pipeline(vae, vocabulary(), seed=settings.run.seed)
    backbone = SD3Backbone(pipe, max_sequence_length=0)
    trainer = Trainer(
        parameters=base_parameters(pipe),
        source=CaptionedLatents(
            backbone=backbone,
            latents=_encode_all(backbone, images),
            captions=captions,
            batch_size=settings.base.batch_size,
            seed=settings.run.seed,
        ),
        objective=WeightedTerms(Policy(backbone), [(1.0, VelocityMatching())]),
        settings=loop(settings.base, settings, ema_decay=0.999),
        folder=folder,
        identity=fingerprint("base", settings.base, settings),
    )
    train_part(trainer, "base")
    assert trainer.average is not None
    with trainer.average.applied(), atomic_folder(finished) as staging, quiet_loading():
        pipe.to(torch.float16).save_pretrained(staging)
    summarise(trainer)
    return finished


def _encode_all(backbone: SD3Backbone, images: np.ndarray) -> torch.Tensor:
    parts = [
        backbone.encode_images(as_pixels(np.array(images[start : start + 512])) / 2 + 0.5).half()
        for start in range(0, len(images), 512)
    ]
    return torch.cat(parts)
