"""Draws pictures of prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from flow_opd.adapters.bank import AdapterBank
from flow_opd.config.generate import GenerateSettings
from flow_opd.files import write_bytes
from flow_opd.method.policy import Policy
from flow_opd.method.rollouts import generate_latents
from flow_opd.reports.grid import png_bytes
from flow_opd.runs.adapters import load_lora
from flow_opd.runs.base import load_backbone
from flow_opd.runs.training import open_run
from flow_opd.training.seeding import generator
from flow_opd.types import Prompt

SMALLEST_SIDE = (
    256  # pictures of tiny bases are enlarged to this, pixel by pixel, so that people can see them
)


def run(settings: GenerateSettings, *, resume: bool) -> Path:
    """Writes one PNG per prompt and seed and returns the folder."""
    folder = open_run(settings.run)
    backbone = load_backbone(settings.base, settings.compute)
    bank = AdapterBank(backbone)
    adapter = None
    if settings.adapter is not None:
        adapter = "chosen"
        bank.put(adapter, load_lora(settings.adapter, settings.base, key="adapter"))
    policy = Policy(
        backbone,
        adapters=bank,
        adapter=adapter,
        guidance_scale=settings.guidance_scale,
        guidance_batching=settings.compute.guidance_batching,
    )
    sigmas = backbone.sigmas(settings.num_steps)
    console = Console()
    for text, name in zip(settings.prompts, _names(settings.prompts), strict=True):
        seeds = [settings.run.seed + offset for offset in range(settings.images_per_prompt)]
        with torch.no_grad():
            latents = generate_latents(
                policy,
                backbone.encode_prompts([Prompt(text, task="")] * len(seeds)),
                latent_shape=backbone.latent_shape,
                sigmas=sigmas,
                generators=[generator(seed, "generate") for seed in seeds],
                device=backbone.device,
            )
            images = backbone.decode_latents(latents).cpu()
        for seed, image in zip(seeds, images, strict=True):
            file = folder / f"{name}-{seed}.png"
            write_bytes(file, png_bytes(np.asarray(_picture(image))))
            console.print(f"{text!r}, seed {seed}: {file}", highlight=False)
    return folder


def _picture(image: torch.Tensor) -> Image.Image:
    picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    factor = -(-SMALLEST_SIDE // min(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _names(prompts: Sequence[str]) -> list[str]:
    """Returns a file name for each prompt; prompts that look alike in one get a number."""
    slugs = [_slug(text) for text in prompts]
    return [
        slug if slugs.count(slug) == 1 else f"{slug}-prompt{index}"
        for index, slug in enumerate(slugs, start=1)
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "picture"
