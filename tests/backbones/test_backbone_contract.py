"""What every registered backbone promises (`protocols.Backbone`), on a tiny genuine pipeline of its kind."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from flow_opd.adapters.bank import AdapterBank
from flow_opd.backbones.pipeline import DiffusersBackbone
from flow_opd.config.common import BackboneSettings
from flow_opd.method.rollouts import draw_noise
from flow_opd.types import Prompt
from tiny import PROMPTS, fill
from tiny_pipelines import tiny_backbone


@pytest.fixture(params=sorted(BackboneSettings.kind.own))
def base(request: pytest.FixtureRequest) -> DiffusersBackbone:
    return tiny_backbone(request.param)


def noise_of(base: DiffusersBackbone, rows: int) -> torch.Tensor:
    return draw_noise(base.latent_shape, [torch.Generator().manual_seed(row) for row in range(rows)])


def test_it_is_the_one_of_its_pipeline(base: DiffusersBackbone) -> None:
    assert type(base) is BackboneSettings.of(type(base.pipe).__name__).build()
    assert base.pipeline is type(base.pipe)
    parts = set(base.pipe.components)
    assert {name for name in parts if name.startswith("text_encoder")} == set(base.text_encoders)
    assert {name.replace("text_encoder", "tokenizer") for name in base.text_encoders} <= parts


def test_pictures_have_the_promised_size_and_come_back(base: DiffusersBackbone) -> None:
    images = torch.rand(3, 3, base.image_size, base.image_size, generator=torch.Generator().manual_seed(0))
    x0 = base.encode_images(images)
    assert x0.shape == (3, *base.latent_shape)
    rebuilt = base.decode_latents(x0)
    assert rebuilt.shape == images.shape
    assert (x0.dtype, rebuilt.dtype) == (torch.float32, torch.float32)
    assert rebuilt.min() >= 0
    assert rebuilt.max() <= 1
    torch.testing.assert_close(base.encode_images(images[1:2]), x0[1:2], rtol=1e-4, atol=1e-5)


def test_prompts_are_rows_with_their_tasks(base: DiffusersBackbone) -> None:
    conditioning = base.encode_prompts(PROMPTS)
    assert conditioning.tasks == tuple(prompt.task for prompt in PROMPTS)
    assert conditioning.embeds.ndim == 3
    assert conditioning.pooled.ndim == 2
    assert len(conditioning.embeds) == len(conditioning.pooled) == len(PROMPTS)
    alone = base.encode_prompts(PROMPTS[2:3])
    torch.testing.assert_close(alone.embeds, conditioning.embeds[2:3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.pooled, conditioning.pooled[2:3], rtol=1e-4, atol=1e-4)
    null = base.encode_prompts([Prompt("", "")])
    assert null.embeds.shape[1:] == conditioning.embeds.shape[1:]  # guidance puts them into one batch
    assert (null.embeds - alone.embeds).abs().max() > 1e-3


def test_a_velocity_depends_on_its_own_row_alone(base: DiffusersBackbone) -> None:
    noise, sigma = noise_of(base, 4), torch.tensor([0.9, 0.7, 0.4, 0.1])
    conditioning = base.encode_prompts(PROMPTS)
    before = noise.clone()
    velocity = base.velocity(noise, sigma, conditioning)
    assert velocity.shape == noise.shape
    assert velocity.dtype == torch.float32
    assert velocity.isfinite().all()
    assert torch.equal(noise, before)
    for row in range(4):
        one = [row]
        alone = base.velocity(noise[one], sigma[one], conditioning.rows(one))
        torch.testing.assert_close(alone, velocity[one], rtol=1e-4, atol=1e-5)
    assert (velocity[0] - base.velocity(noise, sigma.flip(0), conditioning)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_the_grid_goes_from_noise_to_data(base: DiffusersBackbone, steps: int) -> None:
    sigmas = base.sigmas(steps)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_adapters_fit_around_its_transformer(base: DiffusersBackbone) -> None:
    noise, sigma, conditioning = noise_of(base, 4), torch.full((4,), 0.5), base.encode_prompts(PROMPTS)
    bare = base.velocity(noise, sigma, conditioning)
    bank = AdapterBank(base)
    fill(bank, "student", 1)
    bank.train("student")
    with bank.using(None):
        assert torch.equal(base.velocity(noise, sigma, conditioning), bare)
    adapted = base.velocity(noise, sigma, conditioning)
    assert (adapted - bare).abs().max() > 1e-3
    adapted.square().sum().backward()
    moved = [name for name, p in bank.parameters("student").items() if p.grad is not None and p.grad.any()]
    still = bank.parameters("student").keys() - moved
    # SD3's last block drops what its text tokens have asked for
    assert still <= {f"transformer_blocks.1.attn.add_q_proj.lora_{side}.weight" for side in "AB"}


def test_freed_encoders_are_gone_and_say_so(base: DiffusersBackbone) -> None:
    noise, sigma, conditioning = noise_of(base, 4), torch.full((4,), 0.5), base.encode_prompts(PROMPTS)
    expected = base.velocity(noise, sigma, conditioning)
    gone = [weakref.ref(getattr(base.pipe, name)) for name in base.text_encoders]
    base.free_encoders()
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(gone)
    with pytest.raises(
        RuntimeError, match=r"part that was freed: 'text_encoder'\. Allowed: prompts are encoded"
    ):
        base.encode_prompts(PROMPTS)
    with pytest.raises(RuntimeError, match="part that was freed: 'text_encoder'"):
        base.encoder_identity()
    assert torch.equal(base.velocity(noise, sigma, conditioning), expected)
    assert base.decode_latents(noise).shape == (4, 3, base.image_size, base.image_size)
    base.sigmas(3)
    base.free_encoders()  # twice is as good as once


def test_a_freed_vae_is_gone_and_says_so(base: DiffusersBackbone) -> None:
    gone = weakref.ref(base.pipe.vae)
    base.free_vae()
    gc.collect()
    assert gone() is None
    for work in (base.decode_latents, base.encode_images):
        with pytest.raises(RuntimeError, match="part that was freed: 'vae'"):
            work(torch.zeros(1, *base.latent_shape))
    noise, sigma, conditioning = noise_of(base, 4), torch.full((4,), 0.5), base.encode_prompts(PROMPTS)
    assert base.velocity(noise, sigma, conditioning).isfinite().all()
    base.sigmas(3)


def test_the_identity_of_encoders_is_their_content(base: DiffusersBackbone) -> None:
    kind = type(base.pipe).__name__
    identity = base.encoder_identity()
    assert len(identity) == 16
    base.encode_prompts(PROMPTS)  # tokenizers remember how they padded
    assert base.encoder_identity() == identity == tiny_backbone(kind).encoder_identity()
    for name in base.text_encoders:
        other = tiny_backbone(kind)
        encoder = getattr(other.pipe, name)
        with torch.no_grad():
            next(iter(encoder.parameters())).view(-1)[0] += 1e-3  # one number of one weight
        assert other.encoder_identity() != identity, name
        other = tiny_backbone(kind)
        getattr(other.pipe, name).to(torch.bfloat16)
        assert other.encoder_identity() != identity, name
        other = tiny_backbone(kind)
        getattr(other.pipe, name).config.layer_norm_eps = 1e-3
        assert other.encoder_identity() != identity, name
        other = tiny_backbone(kind)
        getattr(other.pipe, name.replace("text_encoder", "tokenizer")).add_tokens("anotherword")
        assert other.encoder_identity() != identity, name
    other = tiny_backbone(kind)
    other.max_sequence_length += 1
    assert other.encoder_identity() != identity
