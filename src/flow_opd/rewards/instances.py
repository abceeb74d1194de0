"""Objects out of the queries of a Mask2Former, by the rules of the detector that GenEval uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from flow_opd.rewards.detectors import Box

MOST_PAIRS = 100  # pairs of query and class that are looked at in a picture; mmdetection's max_per_image

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
