"""CLIP as rewards use it: the model with its tokenizer and its view of pictures."""

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

from flow_opd.rewards.loading import processor_config, readable, whole_model


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

    def __call__(self, pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
        """Returns the model's input [B, 3, crop, crop] of B RGB pictures, each uint8 [height, width, 3]."""
        pixels = np.stack([self._fit(picture) for picture in pictures]).astype(np.float32) / 255
        normal = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(0, 3, 1, 2), np.float32))

    def _fit(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        short = min(height, width)
        # Multiplied first: 55 * (224 / 55) is below 224.
        size = (self.side * width // short, self.side * height // short)
        image = Image.fromarray(picture)
        if image.size != size:
            image = image.resize(size, Image.Resampling(self.resample))
        left, top = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))


@dataclass(frozen=True)
class Clip:
    """A frozen CLIPModel in float32 on its device, its tokenizer, and what it does with pictures first."""

    model: CLIPModel
    tokenizer: PreTrainedTokenizerBase
    preprocess: Preprocessing
    device: torch.device

    @staticmethod
    def load(path: Path | str, *, what: str, device: torch.device | str = "cpu") -> Clip:
        """Reads a folder as transformers saves it, or a hub id.

        Args:
            path: of a CLIPModel with its tokenizer and preprocessor_config.json.
            what: what it is for, such as "preference model", for the message.
            device: where the model computes.

        Raises:
            RewardError: if a file is missing, damaged, or does not fit.
        """
        allowed = "a CLIPModel in safetensors with its tokenizer and preprocessor_config.json"
        with readable(path, what=what, allowed=allowed) as folder:
            model = whole_model(CLIPModel, folder).to(device)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            return Clip(model, tokenizer, Preprocessing.of(processor_config(folder)), torch.device(device))

    def pixels(self, pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
        """Returns the model's input of B RGB pictures, uint8 [height, width, 3] each, on its device."""
        return self.preprocess(pictures).to(self.device)

    def tokens(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Returns input_ids and attention_mask, [B, L], on the model's device; longer texts are cut."""
        encoded = encode_texts(self.tokenizer, texts)
        return {name: value.to(self.device) for name, value in encoded.items()}
