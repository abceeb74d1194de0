"""Our SD3 against diffusers' own pipeline call: prompts, grid, every step, pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from errors import refused
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.sampling import DynamicsSettings
from flow_opd.errors import ConfigError
from flow_opd.method.policy import Policy
from flow_opd.method.rollouts import WalkNoise, draw_noise, generate_latents, rollout
from oracles import ode_schedule
from tiny import PROMPTS, new_tiny_pipeline
from tiny_pipelines import tiny_sd3

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
    pipe: StableDiffusion3Pipeline,
    noise: Tensor,
    guidance_scale: float,
    output_type: str,
    *,
    size: int = 8,
    max_sequence_length: int = 0,
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
        max_sequence_length=max_sequence_length,
        height=size,
        width=size,
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
        schedule=(schedule := ode_schedule(base.sigmas(STEPS))),
        dynamics=DynamicsSettings.of(dynamics).build(),
        noise=WalkNoise(base.latent_shape, schedule, seeds(), base.device),
    )
    assert len(theirs) == STEPS
    for step, latents in enumerate(theirs):
        torch.testing.assert_close(ours.latents[:, step + 1], latents, rtol=0, atol=5e-6)
    moved = (ours.latents[:, 1:] - ours.latents[:, :-1]).flatten(2).norm(dim=2)
    assert moved.min() > 0.05  # the tolerance is far below what a step does


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ({"t5": True}, 8),
        ({"t5": True}, 12),
        ({"t5": True, "dual": True}, 16),  # SD3.5 Medium has a second attention in its first blocks
        ({"t5": False, "dynamic": True}, 16),  # the shift depends on the resolution
    ],
    ids=["t5", "t5 at 12 px", "dual attention at 16 px", "dynamic shift at 16 px"],
)
def test_every_step_is_that_of_diffusers_with_t5_and_at_other_sizes(
    kind: dict[str, bool], size: int, guidance_scale: float
) -> None:
    pipe = tiny_sd3(**kind)
    base = SD3Backbone(pipe, max_sequence_length=6, resolution=size)
    assert base.latent_shape == (4, size // 2, size // 2)
    noise = draw_noise(base.latent_shape, seeds())
    theirs, _ = call_diffusers(pipe, noise, guidance_scale, "latent", size=size, max_sequence_length=6)
    ours = rollout(
        Policy(base, guidance_scale=guidance_scale),
        base.encode_prompts(PROMPTS),
        PROMPTS,
        schedule=(schedule := ode_schedule(base.sigmas(STEPS))),
        dynamics=DynamicsSettings.of("sde").build(),
        noise=WalkNoise(base.latent_shape, schedule, seeds(), base.device),
    )
    assert len(theirs) == STEPS
    for step, latents in enumerate(theirs):
        torch.testing.assert_close(ours.latents[:, step + 1], latents, rtol=0, atol=1e-5)


def test_t5_changes_what_is_drawn() -> None:
    """The control of the parity test with T5: without it, or with fewer of its tokens, others come out."""
    pipe = tiny_sd3(t5=True)
    base = SD3Backbone(pipe, max_sequence_length=6)
    noise, sigma = draw_noise(base.latent_shape, seeds()), torch.full((4,), 0.7)
    conditioning = base.encode_prompts(PROMPTS)
    assert conditioning.embeds.shape == (4, 10 + 6, 16)
    silent = conditioning.embeds.clone()
    silent[:, 10:] = 0
    velocity = base.velocity(noise, sigma, conditioning)
    without = base.velocity(noise, sigma, type(conditioning)(silent, conditioning.pooled, conditioning.tasks))
    assert (velocity - without).abs().max() > 1e-3


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


@pytest.mark.parametrize(
    ("resolution", "close"),
    [(10, 8), (7, 8), (2, 4), (20, 16), (400, 16)],
)
def test_a_size_that_the_base_cannot_draw_is_refused(
    pipe: StableDiffusion3Pipeline, resolution: int, close: int
) -> None:
    with refused(
        ConfigError, value=resolution, names=["'base.resolution'", "4 pixels", "16", f"to {close},"]
    ):
        SD3Backbone(pipe, max_sequence_length=0, resolution=resolution)
    drawable = SD3Backbone(pipe, max_sequence_length=0, resolution=close)
    drawable.velocity(
        torch.zeros(1, *drawable.latent_shape), torch.ones(1), drawable.encode_prompts(PROMPTS[:1])
    )


def test_the_size_of_pictures_follows_the_resolution(pipe: StableDiffusion3Pipeline) -> None:
    usual, larger = (SD3Backbone(pipe, max_sequence_length=0, resolution=size) for size in (None, 16))
    assert (usual.image_size, usual.latent_shape) == (8, (4, 4, 4))
    assert (larger.image_size, larger.latent_shape) == (16, (4, 8, 8))
    assert larger.decode_latents(torch.zeros(1, *larger.latent_shape)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("length", [0, 513])
def test_a_length_that_t5_cannot_read_is_refused(pipe: StableDiffusion3Pipeline, length: int) -> None:
    with refused(ConfigError, value=length, names=["'base.max_sequence_length'", "1 to 512"]):
        SD3Backbone(tiny_sd3(t5=True), max_sequence_length=length)
    SD3Backbone(pipe, max_sequence_length=0)  # fine where there is no T5
