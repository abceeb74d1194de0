"""Stable Diffusion 3 and 3.5 (any size, with or without the T5 encoder) as a velocity field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import SafetensorError
from torch import Tensor, nn

from flow_opd.backbones.quiet import quiet_loading
from flow_opd.errors import ConfigError, explain
from flow_opd.types import Conditioning, Prompt

TIMESTEPS_PER_SIGMA = 1000.0  # the transformer was trained on timestep = 1000 sigma


class SD3Backbone:
    """A `StableDiffusion3Pipeline` that speaks sigma, velocity and x0.

    The transformer may be replaced (an adapter bank wraps it); everything else stays frozen unless a
    caller asks for its gradients.
    """

    def __init__(self, pipe: StableDiffusion3Pipeline, *, max_sequence_length: int) -> None:
        """Wraps a loaded pipeline.

        Args:
            pipe: the pipeline, already on its device and in its dtype.
            max_sequence_length: T5 tokens per prompt; 0 for a base that has no T5 and needs no padding.
        """
        self.pipe = pipe
        self.transformer: nn.Module = pipe.transformer
        self.max_sequence_length = max_sequence_length
        config = pipe.transformer.config
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self.image_size = config.sample_size * pipe.vae_scale_factor  # pixels, height and width
        self.device = pipe.device
        self.dtype = pipe.dtype

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        max_sequence_length: int,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        variant: str | None = None,
        device: str = "cpu",
    ) -> SD3Backbone:
        """Loads a diffusers folder or hub id; a base without T5 is recognised by its own index.

        Raises:
            ConfigError: if it is not a Stable Diffusion 3 pipeline, or a file of it is missing or damaged.
        """
        with quiet_loading(), _told_as_config_error(path):
            pipe = StableDiffusion3Pipeline.from_pretrained(
                path, dtype=dtype, revision=revision, variant=variant, use_safetensors=True, **_absent(path)
            )
        pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        return cls(pipe, max_sequence_length=max_sequence_length)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns the conditioning of the prompts; gradients flow if the text encoders want them."""
        texts = [prompt.text for prompt in prompts]
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.device,
        )
        return Conditioning(embeds, pooled, tuple(prompt.task for prompt in prompts))

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the transformer's velocity at (x_sigma, sigma, c), [M, C, H, W], float32.

        Trajectories live where their noise was drawn, on the CPU; only the network's inputs travel to
        the device of the pipeline, and the velocity comes back to `latents`.
        """
        output = self.transformer(
            hidden_states=latents.to(self.device, self.dtype),
            timestep=(sigma * TIMESTEPS_PER_SIGMA).to(self.device),
            encoder_hidden_states=conditioning.embeds.to(self.device, self.dtype),
            pooled_projections=conditioning.pooled.to(self.device, self.dtype),
            return_dict=False,
        )[0]
        return output.to(latents.device, torch.float32)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Returns x0 (the posterior mean, shifted and scaled), [B, C, H, W], of images in [0, 1]."""
        vae = self.pipe.vae
        posterior = vae.encode((images * 2 - 1).to(device=self.device, dtype=vae.dtype)).latent_dist
        x0 = (posterior.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        return x0.to(images.device, torch.float32)

    @torch.no_grad()
    def decode_latents(self, x0: Tensor) -> Tensor:
        """Returns images in [0, 1], [B, 3, height, width], of x0 [B, C, H, W]."""
        vae = self.pipe.vae
        latents = x0.to(self.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(latents, return_dict=False)[0].to(x0.device, torch.float32)
        return (image / 2 + 0.5).clamp(0, 1)

    def sigmas(self, num_steps: int) -> Tensor:
        """Returns the scheduler's own grid, [num_steps + 1], from 1 to 0, shift included."""
        self.pipe.scheduler.set_timesteps(num_steps, device="cpu")
        return self.pipe.scheduler.sigmas.float().clone()


def _absent(path: str | Path) -> dict[str, None]:
    """Returns the parts that a local folder was saved without: it refuses to load unless told so again."""
    file = Path(path) / "model_index.json"
    if not file.exists():
        if not Path(path).exists():
            return {}
        raise ConfigError(
            explain(
                "the base is not a diffusers folder",
                value=str(path),
                allowed="a folder with a model_index.json, or a hub id",
                fix="point base.path at the folder that save_pretrained wrote",
            )
        )
    index = json.loads(file.read_text())
    if index.get("_class_name") != "StableDiffusion3Pipeline":
        raise ConfigError(
            explain(
                f"the base in {path} is not a Stable Diffusion 3 pipeline",
                value=index.get("_class_name"),
                allowed="a folder whose model_index.json names StableDiffusion3Pipeline",
                fix="point base.path at such a folder",
            )
        )
    optional = ("text_encoder_3", "tokenizer_3")
    return {part: None for part in optional if index.get(part) in (None, [None, None])}


@contextmanager
def _told_as_config_error(path: str | Path) -> Iterator[None]:
    """Turns what the libraries raise over missing or damaged files into one message that names the base."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as damage:
        raise ConfigError(
            explain(
                f"the base cannot be loaded ({type(damage).__name__}: {str(damage).strip()[:300]})",
                value=str(path),
                allowed="a complete diffusers folder in safetensors, or a hub id that can be reached",
                fix="correct base.path, or copy or download the base again",
            )
        ) from damage
