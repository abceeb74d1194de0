"""A reward that is a class: what its `__init__` takes are its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flow_opd import Prompt
from flow_opd.types import RewardScores

LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


class Sharpness:
    """How much of an image is edge: the mean absolute Laplacian of its grey values, cut at a limit."""

    name = "sharpness"
    scale = (0.0, 1.0)

    def __init__(self, limit: Annotated[float, Field(gt=0, le=1)] = 0.1, *, device: str = "cpu") -> None:
        """Builds the filter.

        Args:
            limit: mean Laplacian from which an image has the full score of 1.
            device: where it is computed; the run gives it, no configuration does.
        """
        self.limit = limit
        self.filter = LAPLACIAN.view(1, 1, 3, 3).to(device)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        """Returns a score for each image, [B, 3, height, width] in [0, 1]; all prompts can be judged."""
        grey = images.mean(1, keepdim=True).to(self.filter.device)
        edges = torch.nn.functional.conv2d(grey, self.filter).abs().mean(dim=(1, 2, 3))
        values = (edges / self.limit).clamp(max=1.0).cpu()
        return RewardScores(self.name, values, torch.ones(len(prompts), dtype=torch.bool), self.scale)
