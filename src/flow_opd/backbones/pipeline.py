"""What all backbones share: the size of pictures, their latents and back, and memory that is given back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self

import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor, nn

from flow_opd.backbones.encoders import LONGEST_T5_PROMPT, identity_of
from flow_opd.config.common import BaseModelSettings
from flow_opd.errors import ConfigError, explain
from flow_opd.types import Conditioning, Prompt


class DiffusersBackbone(ABC):
    """A diffusers pipeline with the interface of sigma, velocity and x0.

    The transformer may be replaced (an adapter bank wraps it); everything else stays frozen unless a
    caller asks for its gradients. Latents live where their noise was drawn, on the CPU; only the inputs
    of a network travel to the device of the pipeline.
    """

    pipeline: ClassVar[Any]  # class of diffusers that loads it
    text_encoders: ClassVar[tuple[str, ...]]  # parts of the pipeline; `tokenizer...` has the same ending
    embedders: ClassVar[tuple[str, ...]] = ()  # layers of the transformer whose outputs the blocks start from

    def __init__(
        self, pipe: Any, *, max_sequence_length: int, resolution: int | None, channels: int, default_side: int
    ) -> None:
        """Wraps a loaded pipeline.

        Args:
            pipe: the pipeline, already on its device and in its dtype.
            max_sequence_length: T5 tokens per prompt.
            resolution: height and width of the images in pixels; None takes the default.
            channels: of the latents.
            default_side: height and width of the latents where no resolution is given.

        Raises:
            ConfigError: if the pipeline cannot draw images of this size.
        """
        self.pipe = pipe
        self.transformer: nn.Module = pipe.transformer
        self.max_sequence_length = max_sequence_length
        self.image_size = resolution or default_side * pipe.vae_scale_factor  # pixels, height and width
        side = self.image_size // pipe.vae_scale_factor
        self.latent_shape = (channels, side, side)
        self.device: torch.device = pipe.device
        self.dtype: torch.dtype = pipe.transformer.dtype

    @classmethod
    def text_tokens(cls, encoders: Mapping[str, Mapping[str, Any]], base: BaseModelSettings) -> int:
        """Returns L, the text tokens that the transformer sees of a prompt, for a plan without weights.

        Args:
            encoders: name in the pipeline -> config.json of a text encoder.
            base: what the user asks for.
        """
        return base.max_sequence_length

    @classmethod
    @abstractmethod
    def absent_parts(cls, index: Mapping[str, Any], base: BaseModelSettings) -> dict[str, None]:
        """Returns the parts that are not loaded: the base was saved without them, or they are switched off.

        Args:
            index: the pipeline's model_index.json.
            base: what the user asks for.

        Raises:
            ConfigError: if it asks for what a base of this kind does not have or cannot miss.
        """

    @classmethod
    @abstractmethod
    def wrap(cls, pipe: Any, base: BaseModelSettings) -> Self:
        """Returns the backbone around a loaded pipeline, with the sizes that the user asks for.

        Raises:
            ConfigError: if the pipeline cannot be used that way.
        """

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns the conditioning of the prompts; gradients flow if the text encoders want them."""

    @abstractmethod
    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the transformer's velocity at (x_sigma, sigma, c), [M, C, H, W], float32."""

    @abstractmethod
    def sigmas(self, num_steps: int) -> Tensor:
        """Returns the pipeline's own grid, [num_steps + 1], from 1 to 0, shift included."""

    def autocast(self) -> AbstractContextManager[None]:
        """Returns the context in which the transformer is called: products in the format of its weights."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Returns x0 (the posterior mean, shifted and scaled), [B, C, H, W], of images in [0, 1]."""
        vae = self._part("vae")
        posterior = vae.encode((images * 2 - 1).to(device=self.device, dtype=vae.dtype)).latent_dist
        x0 = (posterior.mode() - _shift(vae)) * vae.config.scaling_factor
        return x0.to(images.device, torch.float32)

    @torch.no_grad()
    def decode_latents(self, x0: Tensor) -> Tensor:
        """Returns images in [0, 1], [B, 3, height, width], of x0 [B, C, H, W]."""
        vae = self._part("vae")
        latents = x0.to(self.device, vae.dtype) / vae.config.scaling_factor + _shift(vae)
        image = vae.decode(latents, return_dict=False)[0].to(x0.device, torch.float32)
        return (image / 2 + 0.5).clamp(0, 1)

    def encoder_identity(self) -> str:
        """Returns a hash of all that decides what `encode_prompts` gives; embeddings belong to one identity.

        Raises:
            RuntimeError: if the text encoders were freed.
        """
        self._part(self.text_encoders[0])
        encoders = {name: getattr(self.pipe, name) for name in self.text_encoders}
        tokenizers = {
            name: getattr(self.pipe, name.replace("text_encoder", "tokenizer")) for name in encoders
        }
        return identity_of(self.pipeline.__name__, encoders, tokenizers, self.max_sequence_length)

    def free_encoders(self) -> None:
        """Drops the text encoders from memory; `encode_prompts` raises from then on."""
        for name in self.text_encoders:
            setattr(self.pipe, name, None)

    def free_vae(self) -> None:
        """Drops the VAE from memory; `encode_images` and `decode_latents` raise from then on."""
        self.pipe.vae = None

    def _part(self, name: str) -> Any:
        """Returns a part of the pipeline.

        Raises:
            RuntimeError: if it was freed.
        """
        part = getattr(self.pipe, name)
        if part is None:
            order = "prompts are encoded before free_encoders(), pictures before free_vae()"
            what, fix = "work of a part that was freed", "do it earlier, or load the base again"
            raise RuntimeError(explain(what, value=name, allowed=order, fix=fix))
        return part


def _shift(vae: Any) -> float:
    shift: float | None = vae.config.shift_factor
    return 0.0 if shift is None else shift


def grid(scheduler: Any, num_steps: int, *, tokens: int, given: Sequence[float] | None = None) -> Tensor:
    """Returns a copy of the noise levels that a scheduler visits, [num_steps + 1], from 1 to 0.

    Args:
        scheduler: of the pipeline; its timesteps are set.
        num_steps: steps from noise to image.
        tokens: image tokens of the transformer, which decide a shift by resolution.
        given: noise levels before the shift, descending, [num_steps]; None takes the scheduler's own.
    """
    config = scheduler.config
    mu = None
    if config.use_dynamic_shifting:
        mu = calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
    if given is None:
        scheduler.set_timesteps(num_steps, device="cpu", mu=mu)
    else:
        scheduler.set_timesteps(sigmas=list(given), device="cpu", mu=mu)
    sigmas: Tensor = scheduler.sigmas
    return sigmas.float().clone()


def check_resolution(resolution: int | None, *, multiple: int, largest: int | None = None) -> None:
    """Passes if images of `resolution` pixels a side can be drawn.

    Args:
        resolution: of the user; None is always good.
        multiple: pixels of one image token.
        largest: pixels, where positions beyond it are unknown to the transformer.

    Raises:
        ConfigError: if not.
    """
    if resolution is None:
        return
    if resolution % multiple or (largest is not None and resolution > largest):
        limit = f" up to {largest}" if largest is not None else ""
        close = max(multiple, min(round(resolution / multiple) * multiple, largest or resolution + multiple))
        raise ConfigError(
            "'base.resolution' is a size that this base cannot draw",
            value=resolution,
            allowed=f"multiples of {multiple} pixels{limit}",
            fix=f"set base.resolution to {close}, or leave it out for the base's own size",
        )


def check_t5_length(max_sequence_length: int) -> None:
    """Passes if T5 can encode prompts of so many tokens.

    Raises:
        ConfigError: if not.
    """
    if not 1 <= max_sequence_length <= LONGEST_T5_PROMPT:
        raise ConfigError(
            "'base.max_sequence_length' is no length for the T5 encoder of this base",
            value=max_sequence_length,
            allowed=f"1 to {LONGEST_T5_PROMPT} tokens",
            fix="set 128 or 256, or drop the encoder by base.t5: false where the base can do without",
        )
