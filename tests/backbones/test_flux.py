"""Our FLUX against diffusers' own pipeline call: prompts, grid, every step, pictures; and an OPD update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from errors import refused
from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.formats.reading import read_adapter
from flow_opd.backbones.flux import FluxBackbone, pack, token_positions, unpack
from flow_opd.config.common import BaseModelSettings, LoraSettings
from flow_opd.config.sampling import DynamicsSettings
from flow_opd.errors import ConfigError
from flow_opd.method.policy import Policy
from flow_opd.method.rollouts import WalkNoise, draw_noise, generate_latents, rollout
from oracles import ode_schedule
from tiny import PROMPTS, fill, gradients
from tiny_pipelines import TinyOn, tiny_flux

TEXTS = [prompt.text for prompt in PROMPTS]
STEPS, TOKENS = 5, 6


def new_base(*, guidance: float | None = 3.5, size: int = 8) -> FluxBackbone:
    pipe = tiny_flux(guidance_embeds=guidance is not None)
    return FluxBackbone(pipe, max_sequence_length=TOKENS, embedded_guidance=guidance, resolution=size)


def seeds() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + row) for row in range(len(TEXTS))]


def call_diffusers(base: FluxBackbone, true_cfg_scale: float, output_type: str) -> tuple[list[Tensor], Any]:
    """Returns the latents after every step of diffusers' own call, as [4, C, H, W], and its output."""
    pipe, size, (_, height, width) = base.pipe, base.image_size, base.latent_shape
    visited: list[Tensor] = []

    def keep(_: Any, step: int, timestep: Tensor, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        visited.append(
            FluxPipeline._unpack_latents(seen["latents"].clone(), size, size, pipe.vae_scale_factor)
        )
        return {}

    noise = draw_noise(base.latent_shape, seeds())
    output = pipe(
        prompt=TEXTS,
        negative_prompt=[""] * len(TEXTS),
        true_cfg_scale=true_cfg_scale,
        guidance_scale=3.5,
        num_inference_steps=STEPS,
        latents=FluxPipeline._pack_latents(noise, len(TEXTS), len(noise[0]), height, width),
        max_sequence_length=TOKENS,
        height=size,
        width=size,
        output_type=output_type,
        callback_on_step_end=keep,
    ).images
    return visited, output


@pytest.mark.parametrize("size", [8, 20])
@pytest.mark.parametrize("true_cfg_scale", [1.0, 4.5])
@pytest.mark.parametrize("guidance", [3.5, None], ids=["guidance-distilled", "no guidance embedding"])
def test_every_step_is_that_of_diffusers(guidance: float | None, true_cfg_scale: float, size: int) -> None:
    base = new_base(guidance=guidance, size=size)
    theirs, _ = call_diffusers(base, true_cfg_scale, "latent")
    ours = rollout(
        Policy(base, guidance_scale=true_cfg_scale),
        base.encode_prompts(PROMPTS),
        PROMPTS,
        schedule=(schedule := ode_schedule(base.sigmas(STEPS))),
        dynamics=DynamicsSettings.of("sde").build(),
        noise=WalkNoise(base.latent_shape, schedule, seeds(), base.device),
    )
    assert len(theirs) == STEPS
    for step, latents in enumerate(theirs):
        torch.testing.assert_close(ours.latents[:, step + 1], latents, rtol=0, atol=5e-6)
    moved = (ours.latents[:, 1:] - ours.latents[:, :-1]).flatten(2).norm(dim=2)
    assert moved.min() > 0.05  # the tolerance is far below what a step does


def test_guidance_prompts_and_positions_matter_here() -> None:
    """The control of the parity tests: each thing that they could miss moves the velocity by far more."""
    base = new_base()
    conditioning, noise = base.encode_prompts(PROMPTS), draw_noise(base.latent_shape, seeds())
    sigma = torch.full((4,), 0.7)
    plain = base.velocity(noise, sigma, conditioning)
    others = {
        "prompt": base.velocity(noise, sigma, conditioning.rows([1, 0, 3, 2])),
        "true guidance": Policy(base, guidance_scale=4.5).velocity(noise, sigma, conditioning),
        "sigma": base.velocity(noise, sigma / 2, conditioning),
        "place": base.velocity(noise.transpose(2, 3), sigma, conditioning).transpose(2, 3),
    }
    base.embedded_guidance = 1.0
    others["embedded guidance"] = base.velocity(noise, sigma, conditioning)
    assert {name for name, other in others.items() if (other - plain).abs().max() < 1e-3} == set()


def test_pictures_are_those_of_diffusers() -> None:
    base = new_base()
    _, theirs = call_diffusers(base, 4.5, "pt")
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


def test_prompts_are_encoded_as_diffusers_does() -> None:
    base = new_base()
    embeds, pooled, _ = base.pipe.encode_prompt(TEXTS, max_sequence_length=TOKENS)
    ours = base.encode_prompts(PROMPTS)
    assert torch.equal(ours.embeds, embeds)
    assert torch.equal(ours.pooled, pooled)
    assert ours.tasks == tuple(prompt.task for prompt in PROMPTS)
    assert ours.embeds.shape == (4, TOKENS, 16)


def test_tokens_are_packed_and_placed_as_in_diffusers() -> None:
    latents = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(0))
    tokens = pack(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 16, 6, 4))
    assert torch.equal(unpack(tokens, 6, 4), latents)
    theirs = FluxPipeline._prepare_latent_image_ids(2, 3, 2, torch.device("cpu"), torch.float32)
    assert torch.equal(token_positions(3, 2), theirs)


def test_the_grid_is_shifted_by_the_resolution() -> None:
    """mu is 0.5 at 256 tokens and 1.15 at 4096, and between them on a line: e^mu s / (1 + (e^mu - 1) s)."""
    even = np.linspace(1, 1 / STEPS, STEPS)
    for size, tokens in ((8, 4), (64, 256), (256, 4096)):
        mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
        shifted = np.exp(mu) * even / (1 + (np.exp(mu) - 1) * even)
        sigmas = new_base(size=size).sigmas(STEPS)
        np.testing.assert_allclose(sigmas.numpy(), [*shifted, 0.0], rtol=1e-5)
    base = new_base()
    base.sigmas(STEPS).zero_()
    assert base.pipe.scheduler.sigmas[0] == 1  # ours is a copy


def test_sizes_lengths_and_guidance_that_do_not_fit_are_refused() -> None:
    dev, plain = tiny_flux(guidance_embeds=True), tiny_flux(guidance_embeds=False)
    usual = {"max_sequence_length": TOKENS, "embedded_guidance": 3.5, "resolution": 8}
    FluxBackbone(dev, **usual)
    with refused(ConfigError, value=6, names=["base.resolution"]):
        FluxBackbone(dev, **{**usual, "resolution": 6})
    with refused(ConfigError, value=0, names=["base.max_sequence_length"]):
        FluxBackbone(dev, **{**usual, "max_sequence_length": 0})
    with refused(ConfigError, names=["base.embedded_guidance", "3.5"]):
        FluxBackbone(dev, **{**usual, "embedded_guidance": None})
    with refused(ConfigError, value=3.5):
        FluxBackbone(plain, **usual)
    with refused(ConfigError, value=False, names=["base.t5"]):
        FluxBackbone.absent_parts({}, BaseModelSettings(path="x", max_sequence_length=TOKENS, t5=False))


def test_one_opd_update_moves_the_student_towards_its_teachers() -> None:
    tiny = TinyOn(new_base())
    source, objective = tiny.algorithm("opd")

    def divergence() -> float:
        batches = list(next(iter(source.round(0))))
        return sum(objective(batch).total.item() for batch in batches)

    def loss() -> None:
        for batch in next(iter(source.round(0))):
            objective(batch).total.backward()

    found = gradients(tiny.parameters.values(), loss)
    assert all(gradient.abs().sum() > 0 for gradient in found)
    assert not any(p.grad is not None for name in ("anchor",) for p in tiny.bank.parameters(name).values())
    before = divergence()
    length = torch.sqrt(sum(gradient.square().sum() for gradient in found))
    with torch.no_grad():
        for parameter, gradient in zip(tiny.parameters.values(), found, strict=True):
            parameter -= 0.01 * gradient / length
    assert divergence() < before


def test_the_default_lora_reaches_every_attention_of_flux(tmp_path: Path) -> None:
    """Eight projections of a double block; of a single block the three that it has."""
    base = new_base()
    bank = AdapterBank(base)
    fill(bank, "student", 1)
    modules = {key.removesuffix(".lora_A.weight") for key in bank.parameters("student") if ".lora_A" in key}
    double = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    expected = {f"transformer_blocks.0.attn.{name}" for name in double}
    expected |= {f"single_transformer_blocks.{i}.attn.{name}" for i in (0, 1) for name in double[:3]}
    assert modules == expected

    named = base.pipe.transformer.named_modules()
    linears = [name.replace(".base_layer", "") for name, module in named if isinstance(module, nn.Linear)]
    single = [f"single_transformer_blocks.{i}.{name}" for i in (0, 1) for name in ("proj_mlp", "proj_out")]
    more = LoraSettings(target_modules=("proj_mlp", *single[1::2]))
    assert [name for name in linears if more.targets(name)] == single  # as the guide says
    assert LoraSettings(target_modules=("proj_out",)).targets("proj_out")  # the last layer too

    bank.weights("student").write(tmp_path / "adapter")
    noise, sigma = draw_noise(base.latent_shape, seeds()), torch.full((4,), 0.5)
    with bank.using("student"), torch.no_grad():
        expected_velocity = base.velocity(noise, sigma, base.encode_prompts(PROMPTS))
    again = new_base()
    bare = again.velocity(noise, sigma, again.encode_prompts(PROMPTS))
    other = AdapterBank(again)
    other.put("loaded", read_adapter(tmp_path / "adapter"))
    with other.using("loaded"), torch.no_grad():
        found = again.velocity(noise, sigma, again.encode_prompts(PROMPTS))
    assert torch.equal(found, expected_velocity)
    assert (found - bare).abs().max() > 1e-2
