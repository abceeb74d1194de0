"""DeQA: the expected level of quality of an image, whatever it shows, by a small network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from flow_opd.config.locations import locate
from flow_opd.config.rewards import DeQASettings
from flow_opd.errors import RewardError
from flow_opd.files import atomic_folder
from flow_opd.rewards.images import check_pairs, to_pixels
from flow_opd.types import Prompt, RewardScores

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
        statistics = 2 * sum(widths) + 2 * 3 * BLOCK**2
        self.head = nn.Sequential(
            nn.LayerNorm(statistics), nn.Linear(statistics, hidden), nn.SiLU(), nn.Linear(hidden, LEVELS)
        )
        self.register_buffer("_blocks", _block_filters(), persistent=False)
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns logits [B, 5], bad to excellent, of pixels [B, 3, height, width] in [-1, 1]."""
        coefficients = functional.conv2d(pixels, self._blocks, stride=BLOCK)
        statistics = [
            0.5 * (coefficients.square().mean((2, 3)) + 1e-4).log(),
            (coefficients.abs().mean((2, 3)) + 1e-3).log(),
        ]
        features = pixels
        for stage in self.stages:
            features = stage(features)
            variance, mean = torch.var_mean(features, dim=(2, 3), correction=0)
            statistics += [mean, 0.5 * (variance + 1e-4).log()]
        logits: Tensor = self.head(torch.cat(statistics, dim=1))
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


def expected_level(logits: Tensor) -> Tensor:
    """Returns sum_k k softmax(logits)_k over the levels 1 to 5, [B].

    DeQA-Score (arXiv 2501.11561), section 3: the closed-set softmax over the words bad, poor, fair, good and
    excellent, read as a distribution of opinions.

    Args:
        logits: [B, 5], bad to excellent.
    """
    levels = torch.arange(1, logits.shape[-1] + 1, dtype=torch.float32, device=logits.device)
    return logits.float().softmax(dim=-1) @ levels


class DeQAReward:
    """No-reference quality from 1 (bad) to 5 (excellent); judges every prompt."""

    name = "deqa"
    scale = (1.0, 5.0)

    def __init__(self, path: Path, *, device: torch.device | str = "cpu", batch_size: int = 256) -> None:
        """Loads the quality model.

        Args:
            path: a folder as `QualityNet.save` writes it.
            device: where it computes, in float32; scores come back to the CPU.
            batch_size: images of one pass.

        Raises:
            RewardError: if there is no usable model.
        """
        self.net = QualityNet.from_folder(Path(path)).to(device)
        self.device, self.batch_size = torch.device(device), batch_size

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        """Returns the expected levels; what the prompts say does not matter.

        Args:
            images: [B, 3, height, width], float, in [0, 1].
            prompts: B prompts.

        Raises:
            RewardError: if the numbers differ, or the images are not usable.
        """
        check_pairs(images, prompts)
        pixels = torch.from_numpy(to_pixels(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        values = [torch.zeros(0)]
        with torch.inference_mode():
            for start in range(0, len(pixels), self.batch_size):
                part = pixels[start : start + self.batch_size].to(self.device)
                values.append(expected_level(self.net(part)).cpu())
        return RewardScores(
            name=self.name,
            values=torch.cat(values),
            valid=torch.ones(len(prompts), dtype=torch.bool),
            scale=self.scale,
        )


def build(settings: DeQASettings, device: torch.device | str) -> DeQAReward:
    """Returns the reward that settings describe."""
    return DeQAReward(locate(settings.path, key="path"), device=device)
