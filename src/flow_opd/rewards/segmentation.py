"""Objects found by a Mask2Former, as GenEval finds them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Mask2FormerForUniversalSegmentation

from flow_opd.rewards.colors import COLORS, ColorClassifier, cut_out
from flow_opd.rewards.detectors import Box, Detection
from flow_opd.rewards.loading import processor_config, readable, whole_model

MOST_PAIRS = 100  # pairs of query and class that are looked at in a picture; mmdetection's max_per_image

LONGEST = 1333 / 800  # the longest side where GenEval's shorter side is 800
# Weights that only the loss reads, or nothing; files of older releases of transformers lack the second.
UNREAD = ("criterion.", ".encoder.swin.layernorm.")

# GenEval's names for what models call otherwise. Three are its own, as COCO's are ambiguous; six are COCO's,
# for which label files have old spellings.
NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Instance:
    """One object: its class by number, its mask in the picture, and how sure the model is."""

    label: int
    score: float  # 0 .. 1
    mask: NDArray[np.bool_]  # [height, width]

    def box(self) -> Box:
        """Returns left, top, right and bottom of the mask; right and bottom are beyond the last pixel."""
        rows, columns = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (1, 0))
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def find_instances(
    class_logits: Tensor, mask_logits: Tensor, *, seen: Size, picture: Size, floor: float
) -> list[Instance]:
    """Returns the objects of one picture, best score first; masks may overlap, a query may be two classes.

        score = p(class | query) * mean of sigmoid(mask) where mask > 0

    p is a softmax over the classes and "no object", and the best 100 pairs of query and class are looked at.
    Source: mmdetection, `MaskFormerFusionHead.instance_postprocess`, the code behind GenEval's detector.
    transformers' own post-processing lets a pixel belong to one object only, and has no boxes.

    Args:
        class_logits: [Q, K + 1], "no object" last.
        mask_logits: [Q, h, w], of any resolution.
        seen: size of the model's input, to which the masks are brought first.
        picture: size of the picture, to which they are brought next.
        floor: only scores above it are kept, 0 or more.
    """
    classes = class_logits.shape[1] - 1
    likely = class_logits.float().softmax(dim=-1)[:, :-1].flatten()
    values, pairs = likely.topk(min(MOST_PAIRS, len(likely)))
    pairs = pairs[values > floor]  # the second factor is at most 1
    queries, places = (pairs // classes).unique(return_inverse=True)
    if not len(queries):
        return []
    masks = mask_logits[queries].float()[None]
    for size in (seen, picture):
        masks = interpolate(masks, size=size, mode="bilinear", align_corners=False)
    inside = masks[0] > 0
    sure = (masks[0].sigmoid() * inside).sum(dim=(1, 2)) / (inside.sum(dim=(1, 2)) + 1e-6)
    scores = likely[pairs] * sure[places]
    solid = inside.cpu().numpy()
    found = [
        Instance(label, score, solid[place])
        for label, score, place in zip(
            (pairs % classes).tolist(), scores.tolist(), places.tolist(), strict=True
        )
    ]
    return sorted((one for one in found if one.score > floor), key=lambda one: -one.score)


@dataclass(frozen=True)
class Input:
    """The numbers of a Mask2Former's preprocessor_config.json: resize to whole strides, normalise.

    Source: GenEval's detector in mmdetection. Differs: sides are rounded to whole strides, not padded; where
    the resized sides are whole strides anyway, as those of square pictures at 800, it is the same.
    """

    size: Size | None  # None: by the shorter side
    side: int  # of the shorter side
    longest: int  # of the longer side
    divisor: int
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(config: Mapping[str, Any], side: int | None = None) -> Input:
        """Reads a size as {"height", "width"}, {"shortest_edge", "longest_edge"}, or a number and max_size.

        Args:
            config: content of the file.
            side: pixels of the shorter side instead; the longer one is then at most 1333 / 800 of it.

        Raises:
            KeyError: if a number is missing.
        """
        size, exact = config["size"], None
        if side is not None:
            longest = round(side * LONGEST)
        elif not isinstance(size, Mapping):
            side, longest = int(size), int(config["max_size"])
        elif "height" in size:
            exact = (int(size["height"]), int(size["width"]))
            side, longest = min(exact), max(exact)
        else:
            side, longest = int(size["shortest_edge"]), int(size["longest_edge"])
        divisor = int(config.get("size_divisor", config.get("size_divisibility", 32)))
        mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
        return Input(exact, side, longest, divisor, int(config["resample"]), mean, std)

    def sides(self, picture: Size) -> Size:
        """Returns height and width of the input for a picture."""
        height, width = picture
        if self.size is not None:
            height, width = self.size
        else:
            scale = min(self.side / min(picture), self.longest / max(picture))
            height, width = round(height * scale), round(width * scale)
        return self._whole(height), self._whole(width)

    def _whole(self, side: int) -> int:
        return math.ceil(side / self.divisor) * self.divisor

    def __call__(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Returns the model's input [B, 3, h, w] of RGB pictures uint8 [B, height, width, 3]."""
        height, width = self.sides((pictures.shape[1], pictures.shape[2]))
        resized = [
            Image.fromarray(one).resize((width, height), Image.Resampling(self.resample)) for one in pictures
        ]
        pixels = np.stack([np.asarray(one) for one in resized]).astype(np.float32) / 255
        normal = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(0, 3, 1, 2), np.float32))


class Mask2FormerDetector:
    """Finds the classes of its Mask2Former, under GenEval's names, and classifies their colours by a CLIP."""

    colors: tuple[str, ...] = COLORS

    def __init__(
        self,
        path: Path | str,
        colors: ColorClassifier,
        *,
        floor: float = 0.3,
        side: int | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 4,
    ) -> None:
        """Loads the Mask2Former.

        Args:
            path: a folder as transformers saves a Mask2FormerForUniversalSegmentation for instances, with its
                preprocessor_config.json, or a hub id.
            colors: names colours.
            floor: detections up to this score are left out.
            side: pixels of the shorter side of what the model sees; None takes the preprocessor_config.json.
            device: where it computes.
            batch_size: pictures of one pass.

        Raises:
            RewardError: if a file is missing, damaged, or does not fit.
        """
        allowed = "a Mask2FormerForUniversalSegmentation in safetensors with its preprocessor_config.json"
        with readable(path, what="Mask2Former", allowed=allowed) as folder:
            self.model = whole_model(Mask2FormerForUniversalSegmentation, folder, unread=UNREAD)
            self._input = Input.of(processor_config(folder), side)
        names: dict[int, str] = self.model.config.id2label
        self.classes = tuple(NAMES.get(names[number], names[number]) for number in sorted(names))
        self.device, self.floor, self.batch_size = torch.device(device), floor, batch_size
        self.model.to(self.device)
        self._colors = colors

    def detect(
        self, images: NDArray[np.uint8], colored: Sequence[Collection[str]] | None = None
    ) -> list[list[Detection]]:
        """Returns the objects in each RGB picture, uint8 [B, height, width, 3], best score first.

        Args:
            images: the pictures.
            colored: for each picture the classes whose colours are needed, None = all. Only these get one:
                most prompts need none, and each costs a pass of CLIP.
        """
        found: list[list[Detection]] = []
        for start in range(0, len(images), self.batch_size):
            pictures = images[start : start + self.batch_size]
            for row, instances in enumerate(self._instances(pictures)):
                asked = self.classes if colored is None else colored[start + row]
                found.append(self._name(pictures[row], instances, asked))
        return found

    @torch.inference_mode()
    def _instances(self, pictures: NDArray[np.uint8]) -> list[list[Instance]]:
        pixels = self._input(pictures).to(self.device)
        output = self.model(pixel_values=pixels)
        seen, size = (pixels.shape[2], pixels.shape[3]), (pictures.shape[1], pictures.shape[2])
        return [
            find_instances(classes, masks, seen=seen, picture=size, floor=self.floor)
            for classes, masks in zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        ]

    def _name(
        self, picture: NDArray[np.uint8], instances: Sequence[Instance], colored: Collection[str]
    ) -> list[Detection]:
        """Returns the detections of one picture's instances."""
        labels = [self.classes[one.label] for one in instances]
        asked = [index for index, label in enumerate(labels) if label in colored]
        crops = [cut_out(picture, instances[index].mask, instances[index].box()) for index in asked]
        names = dict(zip(asked, self._colors.name(crops, [labels[index] for index in asked]), strict=True))
        return [
            Detection(label, names.get(index), one.box(), one.score)
            for index, (label, one) in enumerate(zip(labels, instances, strict=True))
        ]
