"""Draws pictures of prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.options import GenerateSettings
from flow_opd.errors import ConfigError
from flow_opd.files import write_bytes
from flow_opd.method.rollouts import generate_latents
from flow_opd.reports.grid import png_bytes
from flow_opd.runs.adapters import load_lora
from flow_opd.runs.base import Base
from flow_opd.runs.prompts import as_prompts
from flow_opd.runs.training import open_run
from flow_opd.seeding import generator
from flow_opd.types import Prompt

SMALLEST_SIDE = (
    256  # pictures of tiny bases are enlarged to this, pixel by pixel, so that people can see them
)


def run(settings: GenerateSettings) -> Path:
    """Writes one PNG per prompt and seed and returns the folder."""
    folder = open_run(settings.run)
    base = Base.load(settings.base, settings.compute)
    asked = settings.adapter
    lora = None if asked is None else load_lora(asked, settings.base, key="adapter")
    console = Console()
    seeds = [settings.run.seed + offset for offset in range(settings.images_per_prompt)]
    for text, name in zip(settings.prompts, _names(settings.prompts), strict=True):
        pictures = generate(
            base,
            [text] * len(seeds),
            lora,
            seeds=seeds,
            num_steps=settings.num_steps,
            guidance_scale=settings.guidance_scale,
        )
        for seed, picture in zip(seeds, pictures, strict=True):
            file = folder / f"{name}-{seed}.png"
            write_bytes(file, png_bytes(np.asarray(_enlarged(picture))))
            console.print(f"{text!r}, seed {seed}: {file}", highlight=False)
    return folder


@torch.no_grad()
def generate(
    base: Base,
    prompts: Sequence[str | Prompt],
    adapter: LoraWeights | None = None,
    *,
    seeds: Sequence[int] | int = 0,
    num_steps: int = 40,
    guidance_scale: float = 1.0,
) -> list[Image.Image]:
    """Returns a picture of each prompt, by the ODE.

    Args:
        base: that draws.
        prompts: what is drawn.
        adapter: on the base; None draws with the base alone.
        seeds: of the pictures' noise, one for each or the same for all.
        num_steps: of the sampling, >= 1.
        guidance_scale: classifier-free guidance, >= 1; 1 switches it off.

    Raises:
        AdapterError: if the adapter does not fit the base.
        ConfigError: if seeds and prompts are not equally many, or a number is out of its range.
        DataError: if there are no prompts.
    """
    asked = as_prompts(prompts)
    chosen = [seeds] * len(asked) if isinstance(seeds, int) else list(seeds)
    if len(chosen) != len(asked) or num_steps < 1 or not guidance_scale >= 1:
        raise ConfigError(
            "numbers that do not fit the prompts",
            value={"seeds": len(chosen), "num_steps": num_steps, "guidance_scale": guidance_scale},
            allowed=f"{len(asked)} seeds or one for all, num_steps and guidance_scale from 1",
            fix="correct them",
        )
    with base.with_adapter(adapter) as name:
        backbone = base.backbone
        latents = generate_latents(
            base.policy(name, guidance_scale),
            backbone.encode_prompts(asked),
            latent_shape=backbone.latent_shape,
            sigmas=backbone.sigmas(num_steps),
            generators=[generator(seed, "generate") for seed in chosen],
            device=backbone.device,
        )
        images = (backbone.decode_latents(latents).cpu() * 255).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(image.numpy()) for image in images]


def _enlarged(picture: Image.Image) -> Image.Image:
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
