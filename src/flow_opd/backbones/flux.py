"""FLUX.1 (dev, with its guidance embedding, and models of the same kind without) as a velocity field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from flow_opd.backbones.pipeline import DiffusersBackbone, check_resolution, check_t5_length, grid
from flow_opd.config.common import BaseModelSettings
from flow_opd.errors import ConfigError
from flow_opd.types import Conditioning, Prompt

PATCH = 2  # latent pixels of a token, per side
POSITION_AXES = 3  # of a token: unused, row, column


class FluxBackbone(DiffusersBackbone):
    """A `FluxPipeline` with the interface of sigma, velocity and x0.

    Latents keep their shape [B, C, H, W] everywhere; the transformer's tokens, 2x2 latent pixels each, are
    made inside of `velocity`. Guidance of a policy is true classifier-free guidance with the empty
    prompt; the guidance that FLUX.1-dev was distilled with is an input of its own and the same for all.

    The default targets of LoRA (`config.common.ATTENTION_PROJECTIONS`) are here eight projections of each
    double block, and three of each single block: attn.to_q, attn.to_k, attn.to_v.
    """

    pipeline = FluxPipeline
    text_encoders = ("text_encoder", "text_encoder_2")
    embedders = ("x_embedder", "context_embedder")

    def __init__(
        self,
        pipe: FluxPipeline,
        *,
        max_sequence_length: int,
        embedded_guidance: float | None,
        resolution: int | None = None,
    ) -> None:
        """Wraps a loaded pipeline.

        Args:
            pipe: the pipeline, already on its device and in its dtype.
            max_sequence_length: T5 tokens per prompt.
            embedded_guidance: what a guidance-distilled transformer reads, 3.5 in FLUX.1-dev's own example;
                None for a transformer that reads none.
            resolution: height and width of the images in pixels; None takes the pipeline's default.

        Raises:
            ConfigError: if the pipeline cannot draw images of this size, read prompts of this length, or
                needs a guidance and gets none, or the other way round.
        """
        check_resolution(resolution, multiple=pipe.vae_scale_factor * PATCH)
        check_t5_length(max_sequence_length)
        _check_guidance(pipe.transformer.config.guidance_embeds, embedded_guidance)
        super().__init__(
            pipe,
            max_sequence_length=max_sequence_length,
            resolution=resolution,
            channels=pipe.transformer.config.in_channels // PATCH**2,
            default_side=pipe.default_sample_size,
        )
        self.embedded_guidance = embedded_guidance

    @classmethod
    def absent_parts(cls, index: Mapping[str, Any], base: BaseModelSettings) -> dict[str, None]:
        """Returns nothing: every part is needed.

        Raises:
            ConfigError: if T5 shall be dropped; its tokens are all that the transformer reads of a prompt.
        """
        if not base.t5:
            raise ConfigError(
                "'base.t5' drops the encoder that FLUX reads its prompts by",
                value=base.t5,
                allowed="true",
                fix="leave it out",
            )
        return {}

    @classmethod
    def wrap(cls, pipe: Any, base: BaseModelSettings) -> Self:
        """Returns the backbone around a loaded pipeline.

        Raises:
            ConfigError: if it cannot be used with this resolution, prompt length or embedded guidance.
        """
        return cls(
            pipe,
            max_sequence_length=base.max_sequence_length,
            embedded_guidance=base.embedded_guidance,
            resolution=base.resolution,
        )

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns the conditioning of the prompts: T5's tokens, and CLIP's summary as `pooled`.

        Raises:
            RuntimeError: if the text encoders were freed.
        """
        self._part("text_encoder")
        embeds, pooled, _ = self.pipe.encode_prompt(
            prompt=[prompt.text for prompt in prompts],
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )
        return Conditioning(embeds, pooled, tuple(prompt.task for prompt in prompts))

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the transformer's velocity at (x_sigma, sigma, c), [M, C, H, W], float32.

        FLUX's transformer takes sigma itself and multiplies it by 1000 inside.
        """
        rows, _, height, width = latents.shape
        guidance = None
        if self.embedded_guidance is not None:
            guidance = torch.full((rows,), self.embedded_guidance, device=self.device)
        with self.autocast():
            output = self.transformer(
                hidden_states=pack(latents).to(self.device, self.dtype),
                timestep=sigma.to(self.device),
                guidance=guidance,
                encoder_hidden_states=conditioning.embeds.to(self.device, self.dtype),
                pooled_projections=conditioning.pooled.to(self.device, self.dtype),
                txt_ids=torch.zeros(conditioning.embeds.shape[1], POSITION_AXES, device=self.device),
                img_ids=token_positions(height // PATCH, width // PATCH).to(self.device),
                return_dict=False,
            )[0]
        return unpack(output, height, width).to(latents.device, torch.float32)

    def sigmas(self, num_steps: int) -> Tensor:
        """Returns the pipeline's own grid, [num_steps + 1], from 1 to 0: even, then shifted by resolution."""
        tokens = (self.latent_shape[1] // PATCH) ** 2
        even = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return grid(self.pipe.scheduler, num_steps, tokens=tokens, given=even)


def pack(latents: Tensor) -> Tensor:
    """Returns the tokens of latents [M, C, H, W]: 2x2 pixels each, row by row, [M, H / 2 * W / 2, 4 C]."""
    rows, channels, height, width = latents.shape
    blocks = latents.reshape(rows, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * PATCH**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Returns the latents [M, C, height, width] whose tokens, [M, height / 2 * width / 2, 4 C], these are."""
    rows, _, depth = tokens.shape
    blocks = tokens.reshape(rows, height // PATCH, width // PATCH, depth // PATCH**2, PATCH, PATCH)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(rows, -1, height, width)


def token_positions(rows: int, columns: int) -> Tensor:
    """Returns (0, row, column) of each image token, [rows * columns, 3]; those of text tokens are all 0."""
    grid_rows, grid_columns = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(grid_rows), grid_rows, grid_columns], dim=-1).flatten(0, 1).float()


def _check_guidance(reads_guidance: bool, embedded_guidance: float | None) -> None:
    if reads_guidance and embedded_guidance is None:
        what, allowed = (
            "this base was distilled with guidance and needs its scale as an input",
            "a number from 0",
        )
        fix = "set base.embedded_guidance, to 3.5 for FLUX.1-dev"
    elif not reads_guidance and embedded_guidance is not None:
        what, allowed = "'base.embedded_guidance' is set for a base that reads no guidance", "null"
        fix = "leave it out"
    else:
        return
    raise ConfigError(what, value=embedded_guidance, allowed=allowed, fix=fix)
