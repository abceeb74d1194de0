"""PickScore: a CLIP model fine-tuned on which image people prefer for a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flow_opd.config.locations import locate_model
from flow_opd.config.rewards import PickScoreSettings
from flow_opd.rewards.clip import Clip
from flow_opd.rewards.images import check_pairs, to_pixels
from flow_opd.types import Prompt, RewardScores


class PickScoreReward:
    """logit_scale * cosine(image, text), PickScore (arXiv 2305.01569); judges every prompt.

    The scale of scores, 0 to 100, is what PickScore_v1's logit scale allows for angles up to 90 degrees; real
    scores keep to a few units around 21.
    """

    name = "pickscore"
    scale = (0.0, 100.0)

    def __init__(self, path: Path | str, *, device: torch.device | str = "cpu", batch_size: int = 64) -> None:
        """Loads model, tokenizer and the numbers of the preprocessing.

        Args:
            path: a folder as transformers saves a CLIPModel with its tokenizer, or a hub id.
            device: where it computes, in float32; scores come back to the CPU.
            batch_size: images of one pass.

        Raises:
            RewardError: if a file is missing, damaged, or does not fit.
        """
        self.batch_size = batch_size
        self.clip = Clip.load(path, what="preference model", device=device)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        """Returns the scores of images for their own prompts.

        Args:
            images: [B, 3, height, width], float, in [0, 1].
            prompts: B prompts.

        Raises:
            RewardError: if the numbers differ, or the images are not usable.
        """
        check_pairs(images, prompts)
        pictures = to_pixels(images)
        values = [torch.zeros(0)]
        for start in range(0, len(prompts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            values.append(self._score(pictures[rows], [prompt.text for prompt in prompts[rows]]))
        return RewardScores(
            name=self.name,
            values=torch.cat(values),
            valid=torch.ones(len(prompts), dtype=torch.bool),
            scale=self.scale,
        )

    def _score(self, pictures: NDArray[np.uint8], texts: Sequence[str]) -> Tensor:
        model = self.clip.model
        with torch.inference_mode():
            output = model(pixel_values=self.clip.pixels(pictures), **self.clip.tokens(texts))
            cosine = (output.image_embeds * output.text_embeds).sum(dim=-1)
            scores: Tensor = model.logit_scale.exp() * cosine
        return scores.cpu()


def build(settings: PickScoreSettings, device: torch.device | str) -> PickScoreReward:
    """Returns the reward that settings describe."""
    return PickScoreReward(
        locate_model(settings.path, key="path"), device=device, batch_size=settings.batch_size
    )
