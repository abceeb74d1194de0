"""Writes a Stable Diffusion 3 pipeline of any size with random weights, and random LoRAs that fit it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.common import LoraSettings
from flow_opd.miniature.vocabulary import build_tokenizer

WORDS = ("a", "red", "blue", "circle", "square")
PROMPT_TOKENS = 16
TEXT_WIDTH = 64
HEAD_WIDTH = 64


def write_base(folder: Path, *, layers: int, heads: int, latent_side: int) -> None:
    """Writes a diffusers folder: a transformer of `layers` blocks with `heads` heads of 64, a small rest."""
    torch.manual_seed(0)
    tokenizers = [build_tokenizer(WORDS, max_length=PROMPT_TOKENS) for _ in range(2)]
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=latent_side,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=layers,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=heads,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=heads * HEAD_WIDTH,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=latent_side // 2,
            dual_attention_layers=tuple(range(layers // 2)),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 64),
            layers_per_block=1,
            latent_channels=16,
            norm_num_groups=8,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.5305,
            shift_factor=0.0609,
        ),
        text_encoder=_encoder(len(tokenizers[0])),
        tokenizer=tokenizers[0],
        text_encoder_2=_encoder(len(tokenizers[1])),
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.save_pretrained(folder)


def write_adapter(base: Path, folder: Path, *, rank: int, seed: int) -> None:
    """Writes a LoRA on the eight attention projections of a base, with both factors random."""
    transformer = SD3Transformer2DModel.from_pretrained(base / "transformer")
    settings, draw = LoraSettings(rank=rank, alpha=2.0 * rank), torch.Generator().manual_seed(seed)
    factors = {
        name: (
            torch.randn(rank, module.in_features, generator=draw) / module.in_features**0.5,
            torch.randn(module.out_features, rank, generator=draw) / rank,
        )
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and settings.targets(name)
    }
    LoraWeights(rank, settings.alpha, factors, settings.target_modules).write(folder)


def _encoder(vocabulary: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=PROMPT_TOKENS,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )
