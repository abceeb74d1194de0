"""The miniature's VAE: diffusers' AutoencoderKL at a small size, and how it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from flow_opd.seeding import generator
from flow_opd.types import LossOutput

LATENT_CHANNELS = 8
POSTERIOR_STD = 0.05


def new_autoencoder(seed: int) -> AutoencoderKL:
    """Returns an untrained VAE: 32x32 pixels to 16x16 latents of eight channels, 163 thousand parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 32),
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=8,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            sample_size=32,
        )


@dataclass(frozen=True)
class PictureBatch:
    """Pictures and the noise of their latents."""

    pixels: Tensor  # [M, 3, 32, 32], in [-1, 1]
    noise: Tensor  # [M, C, 16, 16]


@dataclass(frozen=True)
class PictureBatches:
    """Batches of pictures drawn by (seed, round)."""

    pictures: np.ndarray  # [N, 32, 32, 3], uint8
    batch_size: int
    seed: int

    @property
    def metrics(self) -> Mapping[str, float]:
        """Nothing beyond the loss."""
        return {}

    def round(self, index: int) -> Iterator[list[PictureBatch]]:
        """Yields the one update of round `index`."""
        draw = generator(self.seed, "vae", index)
        rows = torch.randint(len(self.pictures), (self.batch_size,), generator=draw).numpy()
        noise = torch.randn(self.batch_size, LATENT_CHANNELS, 16, 16, generator=draw)
        yield [PictureBatch(as_pixels(self.pictures[rows]), noise)]


def as_pixels(pictures: np.ndarray) -> Tensor:
    """Returns uint8 pictures [N, 32, 32, 3] as the VAE's [N, 3, 32, 32] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


class AutoencoderLoss:
    """Reconstruction, with latents whose coarse part is plain and whose detail is small.

    The first three channels are held near the half-size picture and the others are kept small. A flow
    model fits what has power first: with whitened latents, detail noise dominates its loss and shapes
    come late; here shapes come first. The posterior's std is held at a constant, so the KL term of a
    VAE reduces to the penalty on the mean.
    """

    def __init__(self, vae: AutoencoderKL, *, coarse: float = 0.5, detail: float = 0.01) -> None:
        """Takes the VAE to train and the weights of the two penalties on its latents."""
        self.vae = vae
        self.coarse = coarse
        self.detail = detail

    def __call__(self, batch: PictureBatch) -> LossOutput:
        """Returns the loss summed over pictures."""
        pixels, rows = batch.pixels, len(batch.pixels)
        posterior = self.vae.encode(pixels).latent_dist
        mean = posterior.mean
        rebuilt = self.vae.decode(mean + POSTERIOR_STD * batch.noise).sample
        error = (rebuilt - pixels).pow(2).mean() + 0.2 * (rebuilt - pixels).abs().mean()
        coarse = (mean[:, :3] - functional.avg_pool2d(pixels, 2)).pow(2).mean()
        detail = mean[:, 3:].pow(2).mean()
        held = (posterior.logvar - 2 * np.log(POSTERIOR_STD)).pow(2).mean()
        loss = error + self.coarse * coarse + self.detail * detail + 1e-3 * held
        metrics = {"loss": loss, "reconstruction": error, "coarse": coarse, "detail": detail}
        return LossOutput(loss * rows, rows, {name: value.detach() * rows for name, value in metrics.items()})


def set_latent_scale(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Sets scaling_factor and shift_factor so that x0 has mean 0 and std 1 over all of its numbers.

    One number for all channels: scaling each by itself would whiten the detail.

    Args:
        vae: the trained VAE; its config is changed.
        pictures: [N, 3, 32, 32] in [-1, 1].
    """
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(256)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
