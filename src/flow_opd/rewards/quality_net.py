"""A small network that sorts pictures into five levels of quality."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from flow_opd.errors import RewardError
from flow_opd.files import atomic_folder

LEVELS = 5  # bad, poor, fair, good, excellent
CONFIG, WEIGHTS = "config.json", "model.safetensors"


BLOCK = 8  # pixels, side of a JPEG block
# RGB to luma and two chromas, ITU-R BT.601 as in JPEG.
LUMA_CHROMA = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))


class QualityNet(nn.Module):
    """Statistics of filters over the picture give the logits of five levels.

    Learnt convolutions at three sizes see shapes, edges and noise; their mean and spread over the picture are
    read. The cosine transform of 8x8 blocks sees compression, and blur and noise too: the size of every
    coefficient is read, and how rarely it is there (in the spirit of BLIINDS, Saad, Bovik and Charrier 2010).
    Filters are not normalised: over the batch that would make a score depend on its neighbours, over the
    picture it would hide contrast. Spreads go in as logarithms, for they range over decades.
    """

    _blocks: Tensor  # [192, 3, 8, 8]

    def __init__(self, widths: tuple[int, int, int] = (16, 24, 40), hidden: int = 64) -> None:
        """Builds the layers; 69 thousand parameters at these sizes.

        Args:
            widths: channels at full, half and quarter size.
            hidden: units of the head.
        """
        super().__init__()
        self.widths, self.hidden = tuple(widths), hidden
        fine, middle, coarse = widths
        self.stages = nn.ModuleList([_convolutions(3, fine), _convolutions(fine, middle, coarser=True)])
        self.stages.append(_convolutions(middle, coarse, coarser=True))
        readings = 2 * sum(widths) + 2 * 3 * BLOCK**2
        self.head = nn.Sequential(
            nn.LayerNorm(readings), nn.Linear(readings, hidden), nn.SiLU(), nn.Linear(hidden, LEVELS)
        )
        self.register_buffer("_blocks", _block_filters(), persistent=False)
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns logits [B, 5], bad to excellent, of pixels [B, 3, height, width] in [-1, 1]."""
        coefficients = functional.conv2d(pixels, self._blocks, stride=BLOCK)
        readings = [
            0.5 * (coefficients.square().mean((2, 3)) + 1e-4).log(),
            (coefficients.abs().mean((2, 3)) + 1e-3).log(),
        ]
        features = pixels
        for stage in self.stages:
            features = stage(features)
            variance, mean = torch.var_mean(features, dim=(2, 3), correction=0)
            readings += [mean, 0.5 * (variance + 1e-4).log()]
        logits: Tensor = self.head(torch.cat(readings, dim=1))
        return logits

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Writes config.json and model.safetensors to `folder`, atomically."""
        with atomic_folder(folder) as staging:
            config = {"levels": LEVELS, "widths": list(self.widths), "hidden": self.hidden}
            (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            tensors = {name: value.detach().to(dtype) for name, value in self.state_dict().items()}
            save_file(tensors, staging / WEIGHTS)

    @staticmethod
    def from_folder(folder: Path) -> QualityNet:
        """Returns the network of `folder` in float32, frozen.

        Raises:
            RewardError: if a file is missing, damaged, or does not fit the network.
        """
        try:
            config = json.loads((folder / CONFIG).read_text())
            if config["levels"] != LEVELS:
                raise ValueError(f"{config['levels']} levels")
            net = QualityNet(tuple(config["widths"]), config["hidden"])
            net.load_state_dict(load_file(folder / WEIGHTS), strict=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as damage:
            raise RewardError(
                f"no usable quality model ({damage})",
                value=str(folder),
                allowed=f"a folder with {CONFIG} and a {WEIGHTS} that fits it",
                fix="correct the path, or build the model again",
            ) from damage
        return net.float().requires_grad_(False).eval()


def _convolutions(inputs: int, outputs: int, *, coarser: bool = False) -> nn.Sequential:
    """Returns one convolution at the size of its input, or two at half of it."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, stride=1 + coarser, padding=1), nn.SiLU()]
    if coarser:
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.SiLU()]
    return nn.Sequential(*layers)


def _block_filters() -> Tensor:
    """Returns the 2-D cosine transform of luma and chroma, orthonormal in space, [3 * 64, 3, 8, 8]."""
    grid = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(torch.pi / BLOCK * grid[:, None] * (grid[None] + 0.5)) * (2 / BLOCK) ** 0.5
    waves[0] /= 2**0.5
    space = torch.einsum("uy,vx->uvyx", waves, waves).flatten(0, 1)
    filters = torch.einsum("cr,fyx->cfryx", torch.tensor(LUMA_CHROMA, dtype=torch.float64), space)
    return filters.flatten(0, 1).float()
