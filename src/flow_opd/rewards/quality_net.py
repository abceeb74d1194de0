"""A small network that sorts pictures into five levels of quality."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flow_opd.errors import RewardError, explain
from flow_opd.files import atomic_folder

LEVELS = 5  # bad, poor, fair, good, excellent
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class QualityNet(nn.Module):
    """Convolutions at three sizes whose mean and spread over the picture give the logits of the levels.

    Noise and blur show in the spread of fine filters, shape faults in the coarse ones. The filters are not
    normalised: over the batch that would make a score depend on its neighbours, over the picture it would
    hide contrast. Spreads go in as logarithms, for they range over decades.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 24, 40), hidden: int = 64) -> None:
        """Builds the layers; 43 thousand parameters at these sizes.

        Args:
            widths: channels at full, half and quarter size.
            hidden: units of the head.
        """
        super().__init__()
        self.widths, self.hidden = tuple(widths), hidden
        fine, middle, coarse = widths
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, fine, 3, padding=1), nn.SiLU()),
                nn.Sequential(
                    nn.Conv2d(fine, middle, 3, stride=2, padding=1),
                    nn.SiLU(),
                    nn.Conv2d(middle, middle, 3, padding=1),
                    nn.SiLU(),
                ),
                nn.Sequential(
                    nn.Conv2d(middle, coarse, 3, stride=2, padding=1),
                    nn.SiLU(),
                    nn.Conv2d(coarse, coarse, 3, padding=1),
                    nn.SiLU(),
                ),
            ]
        )
        readings = 2 * sum(widths)
        self.head = nn.Sequential(
            nn.LayerNorm(readings), nn.Linear(readings, hidden), nn.SiLU(), nn.Linear(hidden, LEVELS)
        )
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns logits [B, 5], bad to excellent, of pixels [B, 3, height, width] in [-1, 1]."""
        readings, features = [], pixels
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
                explain(
                    f"no usable quality model ({damage})",
                    value=str(folder),
                    allowed=f"a folder with {CONFIG} and a {WEIGHTS} that fits it",
                    fix="correct the path, or build the model again",
                )
            ) from damage
        return net.float().requires_grad_(False).eval()
