"""DeQA: the expected level of quality of an image, whatever it shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flow_opd.config.locations import locate
from flow_opd.config.rewards import DeQASettings
from flow_opd.rewards.images import check_pairs, to_pixels
from flow_opd.rewards.quality_net import QualityNet
from flow_opd.types import Prompt, RewardScores


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
