"""The smallest genuine pipelines of every kind of base: SD3 with and without T5, and FLUX."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from flow_opd.adapters.bank import AdapterBank
from flow_opd.backbones.flux import FluxBackbone
from flow_opd.backbones.pipeline import DiffusersBackbone
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.miniature.vocabulary import build_tokenizer
from tiny import WORDS, Tiny, fill

CLIP_TOKENS = 10
TEXT_WIDTH = 16  # of the conditioning: what T5 gives, and what the two CLIPs of SD3 give side by side


def tiny_sd3(
    *, seed: int = 0, t5: bool = True, shift: float = 3.0, dynamic: bool = False, dual: bool = False
) -> StableDiffusion3Pipeline:
    """Returns an untrained SD3 pipeline for 8, 12 or 16 pixels: latents have half the side.

    Args:
        seed: of every weight.
        t5: with the third text encoder.
        shift: of the scheduler.
        dynamic: whether the scheduler shifts by resolution.
        dual: with a second attention in the first block, as SD3.5 Medium has it.
    """
    tokenizers = [build_tokenizer(WORDS, max_length=CLIP_TOKENS) for _ in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=4,
            dual_attention_layers=(0,) if dual else (),
            qk_norm="rms_norm",
        )
        pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic),
            vae=tiny_autoencoder(),
            text_encoder=CLIPTextModelWithProjection(_clip_config(len(tokenizers[0]), width=8)),
            tokenizer=tokenizers[0],
            text_encoder_2=CLIPTextModelWithProjection(_clip_config(len(tokenizers[1]), width=8)),
            tokenizer_2=tokenizers[1],
            text_encoder_3=_t5(t5_tokenizer()) if t5 else None,
            tokenizer_3=t5_tokenizer() if t5 else None,
        )
    return frozen(pipe)


def tiny_flux(*, seed: int = 0, guidance_embeds: bool = True) -> FluxPipeline:
    """Returns an untrained FLUX pipeline: one double and one single block, latents [4, H, W] packed 2x2."""
    tokenizer = build_tokenizer(WORDS, max_length=CLIP_TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
        )
        pipe = FluxPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds),
            vae=tiny_autoencoder(),
            text_encoder=CLIPTextModel(_clip_config(len(tokenizer), width=16)),
            tokenizer=tokenizer,
            text_encoder_2=_t5(t5_tokenizer()),
            tokenizer_2=t5_tokenizer(),
        )
    return frozen(pipe)


def tiny_backbone(pipeline: str) -> DiffusersBackbone:
    """Returns the smallest backbone of a kind of pipeline, for 8x8 pixels."""
    if pipeline == "StableDiffusion3Pipeline":
        return SD3Backbone(tiny_sd3(), max_sequence_length=6)
    assert pipeline == "FluxPipeline", f"{pipeline}: a new backbone needs a tiny pipeline here"
    return FluxBackbone(tiny_flux(), max_sequence_length=6, embedded_guidance=3.5, resolution=8)


class TinyOn(Tiny):
    """The cast of `Tiny`, student, two teachers and an anchor, on a given base."""

    def __init__(self, backbone: DiffusersBackbone) -> None:
        self.backbone = backbone
        self.bank = AdapterBank(backbone)
        for seed, name in enumerate(("student", "teacher-shapes", "teacher-signs", "anchor"), start=1):
            fill(self.bank, name, seed)
        self.bank.train("student")


def t5_tokenizer() -> T5TokenizerFast:
    """Returns a T5 tokenizer of known words and single letters; it needs no file."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    letters += [letter.upper() for letter in letters]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = [("▁" + word, -3.0) for word in WORDS if word not in letters]
    return T5TokenizerFast(
        vocab=[*special, *words, *((letter, -6.0) for letter in letters)], extra_ids=0, model_max_length=512
    )


def frozen(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Returns the pipeline itself, silent and without gradients."""
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return pipe


def tiny_autoencoder(*, shift_factor: float | None = 0.06) -> AutoencoderKL:
    """Returns a VAE that halves the side of a picture."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=8,
        scaling_factor=1.5,
        shift_factor=shift_factor,
    )


def _clip_config(vocabulary: int, *, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=16,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
        initializer_factor=20.0,  # loud enough that prompts matter
    )


def _t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )
