"""The miniature's base: a StableDiffusion3Pipeline of which only the sizes are small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Generator, Tensor
from torch.nn import Parameter
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.miniature.vocabulary import build_tokenizer
from flow_opd.seeding import derived_seed, generator
from flow_opd.types import ImageBatch, Prompt

HEADS, HEAD_WIDTH, LAYERS = 4, 32, 4
TEXT_WIDTH = 64  # of each of the two encoders
SHIFT = 3.0  # towards noise, as in SD3: layouts are decided at high noise levels


def new_pipeline(vae: AutoencoderKL, words: Sequence[str], *, seed: int) -> StableDiffusion3Pipeline:
    """Returns an untrained pipeline around a trained VAE: 2.3 M parameters, 64 image and 16 text tokens.

    Args:
        vae: decides the latent shape.
        words: vocabulary of the captions (see `build_tokenizer`).
        seed: of every initial weight.
    """
    tokenizer = build_tokenizer(words)
    latent_size = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "pipeline"))
        transformer = SD3Transformer2DModel(
            sample_size=latent_size,
            patch_size=2,
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            num_layers=LAYERS,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=HEADS * HEAD_WIDTH,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=latent_size // 2,
            qk_norm="rms_norm",
        )
        encoders = [_new_text_encoder(tokenizer) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=build_tokenizer(words),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    with torch.no_grad():
        for table in (
            encoder.text_model.embeddings.token_embedding,
            encoder.text_model.embeddings.position_embedding,
        ):
            # SD3 reads the hidden state before the last layer, where CLIP's 0.02 has hardly an effect yet.
            table.weight.mul_(25.0)
    return encoder


def base_parameters(pipe: StableDiffusion3Pipeline) -> dict[str, Parameter]:
    """Returns what pretraining trains, made trainable: the transformer and both text encoders."""
    named = {}
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        module = pipe.components[part].requires_grad_(True).train()
        named.update({f"{part}.{name}": parameter for name, parameter in module.named_parameters()})
    return named


@dataclass(frozen=True)
class CaptionedLatents:
    """Batches for velocity matching from encoded pictures; the encoder runs once, before training."""

    backbone: SD3Backbone
    latents: Tensor  # [N, C, H, W], x0
    captions: Sequence[str]  # N
    batch_size: int
    seed: int
    purpose: str  # names the draws below the seed
    draw_sigmas: Callable[[int, Generator], Tensor]  # (B, generator) -> noise levels, [B]
    caption_dropout: float = 0.1

    @property
    def metrics(self) -> Mapping[str, float]:
        """Nothing beyond the loss."""
        return {}

    def round(self, index: int) -> Iterator[list[ImageBatch]]:
        """Yields the one update of round `index`."""
        draw = generator(self.seed, self.purpose, index)
        rows = torch.randint(len(self.latents), (self.batch_size,), generator=draw)
        dropped = torch.rand(self.batch_size, generator=draw) < self.caption_dropout
        texts = [
            "" if drop else self.captions[row]
            for row, drop in zip(rows.tolist(), dropped.tolist(), strict=True)
        ]
        x0 = self.latents[rows].float()
        yield [
            ImageBatch(
                x0=x0,
                noise=torch.randn(x0.shape, generator=draw),
                sigma=self.draw_sigmas(self.batch_size, draw),
                conditioning=self.backbone.encode_prompts([Prompt(text, task="") for text in texts]),
            )
        ]
