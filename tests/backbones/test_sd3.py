"""Our SD3 against diffusers' own pipeline call: prompts, grid, every step, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.errors import ConfigError
from flow_opd.flow.dynamics import DYNAMICS
from flow_opd.flow.schedule import ode_schedule
from flow_opd.policies.policy import Policy
from flow_opd.rollout.sampler import draw_noise, generate_latents, rollout
from tiny import PROMPTS, new_tiny_pipeline

TEXTS = [prompt.text for prompt in PROMPTS]
STEPS = 5


@pytest.fixture(scope="module")
def pipe() -> StableDiffusion3Pipeline:
    return new_tiny_pipeline(shift=3.0)


@pytest.fixture(scope="module")
def base(pipe: StableDiffusion3Pipeline) -> SD3Backbone:
    return SD3Backbone(pipe, max_sequence_length=0)


def seeds() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + row) for row in range(len(TEXTS))]


def call_diffusers(
    pipe: StableDiffusion3Pipeline, noise: Tensor, guidance_scale: float, output_type: str
) -> tuple[list[Tensor], Any]:
    """Returns the latents after every step of diffusers' own call, and its output."""
    visited: list[Tensor] = []

    def keep(_: Any, step: int, timestep: Tensor, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        visited.append(seen["latents"].clone())
        return {}

    output = pipe(
        prompt=TEXTS,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        latents=noise.clone(),
        max_sequence_length=0,
        height=8,
        width=8,
        output_type=output_type,
        callback_on_step_end=keep,
    ).images
    return visited, output


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize("dynamics", ["ode", "sde", "cps"])
def test_every_euler_step_is_that_of_diffusers(
    pipe: StableDiffusion3Pipeline, base: SD3Backbone, guidance_scale: float, dynamics: str
) -> None:
    theirs, _ = call_diffusers(pipe, draw_noise(base.latent_shape, seeds()), guidance_scale, "latent")
    ours = rollout(
        Policy(base, guidance_scale=guidance_scale),
        base.encode_prompts(PROMPTS),
        PROMPTS,
        latent_shape=base.latent_shape,
        schedule=ode_schedule(base.sigmas(STEPS)),
        dynamics=DYNAMICS.get(dynamics),
        generators=seeds(),
    )
    assert len(theirs) == STEPS
    for step, latents in enumerate(theirs):
        torch.testing.assert_close(ours.latents[:, step + 1], latents, rtol=0, atol=5e-6)
    moved = (ours.latents[:, 1:] - ours.latents[:, :-1]).flatten(2).norm(dim=2)
    assert moved.min() > 0.05  # the tolerance is far below what a step does


def test_guidance_and_prompts_matter_here(base: SD3Backbone) -> None:
    """The control of the parity tests: another scale or prompt moves the result by far more."""
    conditioning, noise = base.encode_prompts(PROMPTS), draw_noise(base.latent_shape, seeds())
    sigma = torch.full((4,), 0.7)
    plain = Policy(base).velocity(noise, sigma, conditioning)
    assert (Policy(base, guidance_scale=4.5).velocity(noise, sigma, conditioning) - plain).abs().max() > 1e-2
    assert (Policy(base).velocity(noise, sigma, conditioning.rows([1, 0, 3, 2])) - plain).abs().max() > 1e-2


def test_pictures_are_those_of_diffusers(pipe: StableDiffusion3Pipeline, base: SD3Backbone) -> None:
    noise = draw_noise(base.latent_shape, seeds())
    _, theirs = call_diffusers(pipe, noise, 4.5, "pt")
    x0 = generate_latents(
        Policy(base, guidance_scale=4.5),
        base.encode_prompts(PROMPTS),
        latent_shape=base.latent_shape,
        sigmas=base.sigmas(STEPS),
        generators=seeds(),
    )
    images = base.decode_latents(x0)
    assert images.shape == (4, 3, 8, 8)
    torch.testing.assert_close(images, theirs, rtol=0, atol=5e-6)


def test_prompts_are_encoded_as_diffusers_does(pipe: StableDiffusion3Pipeline, base: SD3Backbone) -> None:
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompt=TEXTS, prompt_2=TEXTS, prompt_3=TEXTS, max_sequence_length=0, do_classifier_free_guidance=False
    )
    ours = base.encode_prompts(PROMPTS)
    assert torch.equal(ours.embeds, embeds)
    assert torch.equal(ours.pooled, pooled)
    assert ours.tasks == tuple(prompt.task for prompt in PROMPTS)
    assert ours.embeds.shape[1] == 10  # no padding for a T5 that is not there
    padded = SD3Backbone(pipe, max_sequence_length=7).encode_prompts(PROMPTS)
    assert padded.embeds.shape[1] == 17
    assert not padded.embeds[:, 10:].any()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_grid_is_that_of_the_scheduler(shift: float) -> None:
    pipe = new_tiny_pipeline(shift=shift)
    sigmas = SD3Backbone(pipe, max_sequence_length=0).sigmas(10)
    pipe.scheduler.set_timesteps(10)
    assert torch.equal(sigmas, pipe.scheduler.sigmas)
    torch.testing.assert_close(sigmas[:-1] * 1000, pipe.scheduler.timesteps)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert len(sigmas) == 11
    # diffusers shifts the ends of the range once and the grid between them again
    low = 0.001 * shift / (1 + (shift - 1) * 0.001)
    middle = 1 + (low - 1) * 4 / 9
    assert sigmas[4].item() == pytest.approx(shift * middle / (1 + (shift - 1) * middle), rel=1e-5)
    sigmas.zero_()
    assert pipe.scheduler.sigmas[0] == 1  # ours is a copy


def test_images_go_to_latents_and_back(base: SD3Backbone) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x0 = base.encode_images(images)
    vae = base.pipe.vae
    with torch.no_grad():
        mean = vae.encode(images * 2 - 1).latent_dist.mean
    torch.testing.assert_close(x0, (mean - 0.06) * 1.5)
    assert x0.shape == (2, *base.latent_shape)
    rebuilt = base.decode_latents(x0)
    assert rebuilt.min() >= 0
    assert rebuilt.max() <= 1


def test_a_saved_folder_without_t5_comes_back(pipe: StableDiffusion3Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "base")
    loaded = SD3Backbone.from_pretrained(tmp_path / "base", max_sequence_length=0)
    noise, sigma = draw_noise(loaded.latent_shape, seeds()), torch.full((4,), 0.5)
    fresh = SD3Backbone(pipe, max_sequence_length=0)
    expected = fresh.velocity(noise, sigma, fresh.encode_prompts(PROMPTS))
    assert torch.equal(loaded.velocity(noise, sigma, loaded.encode_prompts(PROMPTS)), expected)
    assert not any(p.requires_grad for p in loaded.transformer.parameters())


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "cut"),
        ("text_encoder/model.safetensors", "cut"),
        ("vae/diffusion_pytorch_model.safetensors", "gone"),
        ("model_index.json", "cut"),
    ],
)
def test_a_damaged_base_is_named(
    pipe: StableDiffusion3Pipeline, tmp_path: Path, file: str, damage: str
) -> None:
    pipe.save_pretrained(tmp_path / "base")
    target = tmp_path / "base" / file
    content = target.read_bytes()
    target.unlink()
    if damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"the base cannot be loaded .*/base'\. Allowed: a complete"):
        SD3Backbone.from_pretrained(tmp_path / "base", max_sequence_length=0)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a diffusers folder"):
        SD3Backbone.from_pretrained(tmp_path, max_sequence_length=0)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ConfigError, match="not a Stable Diffusion 3 pipeline: 'FluxPipeline'"):
        SD3Backbone.from_pretrained(tmp_path, max_sequence_length=0)
