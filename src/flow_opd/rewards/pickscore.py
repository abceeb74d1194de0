"""PickScore: a CLIP model fine-tuned on which image people prefer for a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase
from transformers.image_processing_base import ImageProcessingMixin

from flow_opd.backbones.quiet import quiet_loading
from flow_opd.errors import RewardError, explain
from flow_opd.hub import model_folder
from flow_opd.rewards.images import check_pairs, to_pixels
from flow_opd.types import Prompt, RewardScores


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Mapping[str, Tensor]:
    """Returns input_ids and attention_mask, [B, L]; longer texts are cut."""
    encoded = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


@dataclass(frozen=True)
class Preprocessing:
    """The numbers of a preprocessor_config.json: resize the shorter side, crop the middle, normalise."""

    side: int
    crop: int
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(config: Mapping[str, Any]) -> Preprocessing:
        """Reads both spellings of a size, 224 and {"shortest_edge": 224}.

        Raises:
            KeyError: if a number is missing.
        """
        side, crop = config["size"], config["crop_size"]
        return Preprocessing(
            int(side["shortest_edge"] if isinstance(side, Mapping) else side),
            int(crop["height"] if isinstance(crop, Mapping) else crop),
            int(config["resample"]),
            tuple(config["image_mean"]),
            tuple(config["image_std"]),
        )

    def __call__(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Returns the model's input [B, 3, crop, crop] of RGB pictures uint8 [B, height, width, 3]."""
        pixels = np.stack([self._fit(picture) for picture in pictures]).astype(np.float32) / 255
        normal = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(0, 3, 1, 2), np.float32))

    def _fit(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        scale = self.side / min(height, width)
        size = (int(width * scale), int(height * scale))
        image = Image.fromarray(picture)
        if image.size != size:
            image = image.resize(size, Image.Resampling(self.resample))
        left, top = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))


class PickScoreReward:
    """logit_scale * cosine(image, text), PickScore (arXiv 2305.01569); judges every prompt.

    The scale of scores, 0 to 100, is what PickScore_v1's logit scale allows for angles up to 90 degrees; real
    scores keep to a few units around 21.
    """

    name = "pickscore"
    scale = (0.0, 100.0)

    def __init__(self, path: Path | str, *, batch_size: int = 64) -> None:
        """Loads model, tokenizer and the numbers of the preprocessing.

        Args:
            path: a folder as transformers saves a CLIPModel with its tokenizer, or a hub id.
            batch_size: images of one pass.

        Raises:
            RewardError: if a file is missing, damaged, or does not fit.
        """
        self.batch_size = batch_size
        folder = model_folder(str(path), what="the preference model", error=RewardError)
        try:
            config, _ = ImageProcessingMixin.get_image_processor_dict(folder)
            self.preprocess = Preprocessing.of(config)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            with quiet_loading():
                self.model, report = CLIPModel.from_pretrained(
                    folder, use_safetensors=True, output_loading_info=True
                )
            # transformers only warns and draws random weights instead.
            lacking = [*report["missing_keys"], *report["mismatched_keys"]]
            if lacking:
                raise ValueError(f"weights missing or of another shape: {lacking[:3]}")
        except Exception as damage:  # transformers, tokenizers and safetensors share no class of errors
            raise RewardError(
                explain(
                    f"no usable preference model ({type(damage).__name__}: {damage})",
                    value=str(path),
                    allowed="a CLIPModel in safetensors with its tokenizer and preprocessor_config.json",
                    fix="correct the path, or build the model again",
                )
            ) from damage
        self.model.float().requires_grad_(False).eval()

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
        with torch.inference_mode():
            output = self.model(pixel_values=self.preprocess(pictures), **encode_texts(self.tokenizer, texts))
            cosine = (output.image_embeds * output.text_embeds).sum(dim=-1)
            scores: Tensor = self.model.logit_scale.exp() * cosine
        return scores
