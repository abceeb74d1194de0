"""Stable Diffusion 3 and 3.5 (any size, with or without the T5 encoder) as a velocity field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from flow_opd.backbones.encoders import T5_PARTS
from flow_opd.backbones.pipeline import DiffusersBackbone, check_resolution, check_t5_length, grid
from flow_opd.config.common import BaseModelSettings
from flow_opd.errors import ConfigError
from flow_opd.types import Conditioning, Prompt

TIMESTEPS_PER_SIGMA = 1000.0  # the transformer was trained on timestep = 1000 sigma


class SD3Backbone(DiffusersBackbone):
    """A `StableDiffusion3Pipeline` with the interface of sigma, velocity and x0."""

    pipeline = StableDiffusion3Pipeline
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    embedders = ("pos_embed", "context_embedder")

    def __init__(
        self, pipe: StableDiffusion3Pipeline, *, max_sequence_length: int, resolution: int | None = None
    ) -> None:
        """Wraps a loaded pipeline.

        Args:
            pipe: the pipeline, already on its device and in its dtype.
            max_sequence_length: T5 tokens per prompt. Without T5 they are zeros, with which Stable Diffusion
                3 was trained too; 0 for a base that was not.
            resolution: height and width of the images in pixels; None takes the transformer's own.

        Raises:
            ConfigError: if the pipeline cannot draw images of this size, or read prompts of this length.
        """
        config = pipe.transformer.config
        token = pipe.vae_scale_factor * config.patch_size  # pixels
        check_resolution(resolution, multiple=token, largest=token * config.pos_embed_max_size)
        if pipe.text_encoder_3 is not None:
            check_t5_length(max_sequence_length)
        super().__init__(
            pipe,
            max_sequence_length=max_sequence_length,
            resolution=resolution,
            channels=config.in_channels,
            default_side=config.sample_size,
        )
        self.patch_size: int = config.patch_size

    @classmethod
    def text_tokens(cls, encoders: Mapping[str, Mapping[str, Any]], base: BaseModelSettings) -> int:
        """Returns L: CLIP's tokens, then T5's, in whose place zeros stand where T5 is left out."""
        return int(encoders["text_encoder"]["max_position_embeddings"]) + base.max_sequence_length

    @classmethod
    def absent_parts(cls, index: Mapping[str, Any], base: BaseModelSettings) -> dict[str, None]:
        """Returns the parts that are not loaded: T5, if the base was saved without it or `base.t5` is false.

        Raises:
            ConfigError: if an embedded guidance is set, which no base of this kind reads.
        """
        if base.embedded_guidance is not None:
            raise ConfigError(
                "'base.embedded_guidance' is set for a base that reads no guidance",
                value=base.embedded_guidance,
                allowed="null for Stable Diffusion 3",
                fix="leave it out; guidance_scale of each policy is what guides this base",
            )
        return {part: None for part in T5_PARTS if not base.t5 or index.get(part) in (None, [None, None])}

    @classmethod
    def wrap(cls, pipe: Any, base: BaseModelSettings) -> Self:
        """Returns the backbone around a loaded pipeline.

        Raises:
            ConfigError: if it cannot draw images of this size, or read prompts of this length.
        """
        return cls(pipe, max_sequence_length=base.max_sequence_length, resolution=base.resolution)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns the conditioning of the prompts; gradients flow if the text encoders want them.

        Raises:
            RuntimeError: if the text encoders were freed.
        """
        self._part("text_encoder")
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=[prompt.text for prompt in prompts],
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return Conditioning(embeds, pooled, tuple(prompt.task for prompt in prompts))

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the transformer's velocity at (x_sigma, sigma, c), [M, C, H, W], float32."""
        with self.autocast():
            output = self.transformer(
                hidden_states=latents.to(self.device, self.dtype),
                timestep=(sigma * TIMESTEPS_PER_SIGMA).to(self.device),
                encoder_hidden_states=conditioning.embeds.to(self.device, self.dtype),
                pooled_projections=conditioning.pooled.to(self.device, self.dtype),
                return_dict=False,
            )[0]
        return output.to(latents.device, torch.float32)

    def sigmas(self, num_steps: int) -> Tensor:
        """Returns the scheduler's own grid, [num_steps + 1], from 1 to 0, shift included."""
        tokens = (self.latent_shape[1] // self.patch_size) ** 2
        return grid(self.pipe.scheduler, num_steps, tokens=tokens)
