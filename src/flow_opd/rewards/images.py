"""What every reward does first with its images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flow_opd.errors import RewardError
from flow_opd.types import Prompt


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Returns images [B, 3, H, W] in [0, 1] as RGB pixels, uint8 [B, H, W, 3]; values outside are clipped.

    Raises:
        RewardError: if the shape is another, or a value is not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise RewardError(
            "images of a wrong shape",
            value=tuple(images.shape),
            allowed="[B, 3, height, width]",
            fix="pass decoded RGB images",
        )
    if not torch.isfinite(images).all():
        raise RewardError(
            "images that are not finite",
            value="NaN or infinity",
            allowed="numbers in [0, 1]",
            fix="look for the policy that diverged",
        )
    levels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).cpu().numpy())


def check_pairs(images: Tensor, prompts: Sequence[Prompt]) -> None:
    """Checks that there is one prompt for each image.

    Raises:
        RewardError: if the numbers differ.
    """
    if len(images) != len(prompts):
        raise RewardError(
            "images and prompts differ in number",
            value=(len(images), len(prompts)),
            allowed="one prompt for each image",
            fix="pass as many prompts as images",
        )
