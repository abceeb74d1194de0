"""The colour of an object in a picture, by GenEval's zero-shot CLIP classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from flow_opd.rewards.clip import Clip
from flow_opd.rewards.detectors import Box

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = (
    "a photo of a {color} {label}",
    "a photo of a {color}-colored {label}",
    "a photo of a {color} object",
)
BACKGROUND = (153, 153, 153)  # GenEval's "#999"


def cut_out(picture: NDArray[np.uint8], mask: NDArray[np.bool_], box: Box) -> NDArray[np.uint8]:
    """Returns the part of an RGB picture in a box, uint8 [h, w, 3], grey where the mask is not.

    Source: GenEval, arXiv 2310.11513, its evaluation code (`ImageCrops`).

    Args:
        picture: uint8 [height, width, 3].
        mask: [height, width].
        box: left, top, right, bottom in whole pixels; right and bottom are beyond the last pixel.
    """
    left, top, right, bottom = (round(side) for side in box)
    window = (slice(top, bottom), slice(left, right))
    flat = np.full_like(picture[window], BACKGROUND)
    return np.where(mask[window][:, :, None], picture[window], flat)


class ColorClassifier:
    """Names one of ten colours by zero-shot CLIP.

    The embedding of a colour is the mean of three normalised text embeddings, normalised; the colour whose
    cosine with the picture is largest is taken. There is always one, so an object has a colour even where no
    word of the ten fits.

    Source: GenEval, arXiv 2310.11513, its evaluation code, with the zero-shot classifier of CLIP_benchmark.
    """

    def __init__(self, path: Path | str, *, device: torch.device | str = "cpu", batch_size: int = 16) -> None:
        """Loads the CLIP.

        Args:
            path: a folder as transformers saves a CLIPModel with its tokenizer, or a hub id; GenEval's is
                openai/clip-vit-large-patch14.
            device: where it computes.
            batch_size: pictures of one pass.

        Raises:
            RewardError: if a file is missing, damaged, or does not fit.
        """
        self.clip = Clip.load(path, what="CLIP for colours", device=device)
        self.batch_size = batch_size
        self._classifiers: dict[str, Tensor] = {}

    def name(self, crops: Sequence[NDArray[np.uint8]], labels: Sequence[str]) -> list[str]:
        """Returns the colour of the object in each picture.

        Args:
            crops: RGB pictures of any sizes, each uint8 [height, width, 3], as `cut_out` makes them.
            labels: class of the object in each.
        """
        colors: list[str] = []
        for start in range(0, len(crops), self.batch_size):
            rows = slice(start, start + self.batch_size)
            seen = self._images(crops[rows])
            colors += [
                COLORS[int((self._texts(label) @ one).argmax())]
                for label, one in zip(labels[rows], seen, strict=True)
            ]
        return colors

    @torch.inference_mode()
    def _images(self, crops: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Returns the normalised embeddings, [B, D]."""
        pixels = self.clip.pixels(crops)
        model = self.clip.model
        return normalize(
            model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1
        )

    @torch.inference_mode()
    def _texts(self, label: str) -> Tensor:
        """Returns the normalised embeddings of the colours of a class, [10, D]; worked out once."""
        if label not in self._classifiers:
            texts = [template.format(color=color, label=label) for color in COLORS for template in TEMPLATES]
            model, tokens = self.clip.model, self.clip.tokens(texts)
            embeddings = normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)
            means = embeddings.reshape(len(COLORS), len(TEMPLATES), -1).mean(dim=1)
            self._classifiers[label] = normalize(means, dim=-1)
        return self._classifiers[label]
