"""GenEval's rules on any detector: the right objects, in number, colour and place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_opd.config.locations import locate, locate_model
from flow_opd.config.rewards import GenEvalSettings
from flow_opd.errors import RewardError, nearest
from flow_opd.rewards.colors import ColorClassifier
from flow_opd.rewards.detectors import Detection, Detector, PaletteDetector, by_class
from flow_opd.rewards.images import check_pairs, to_pixels
from flow_opd.rewards.segmentation import Mask2FormerDetector
from flow_opd.types import Prompt, RewardScores

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
MAX_PER_CLASS = 16

Objects = Mapping[str, Sequence[Detection]]


class GenEvalReward:
    """GenEval (arXiv 2310.11513) as a metric and as a training reward.

    strict: the paper's metric, 0 or 1. The best `count` boxes of each class asked for must be there, all with
    the colour and in the position asked for; a class excluded at n must have fewer than n boxes.
    continuous: the mean over the requirements of partial credits, in [0, 1].
    unclamped: the same with credits below 0 for numbers, as Flow-GRPO trains (arXiv 2505.05470): where one is
    asked for, five found are worse than two, so that counting has a gradient there.
    Differs: a failed position gives one credit of 0 (docs/architecture.md).

    Judges prompts whose metadata has a "tag".
    """

    name = "geneval"

    def __init__(
        self,
        detector: Detector,
        *,
        threshold: float = 0.0,
        counting_threshold: float = 0.0,
        clamped: bool = True,
    ) -> None:
        """Keeps the detector.

        Args:
            detector: finds the objects.
            threshold: detections count from above this score; GenEval's .3 belongs to its Mask2Former.
            counting_threshold: the same for the tag counting; GenEval's is .9.
            clamped: scores by the continuous score, else by the unclamped one. With at most 16 objects of a
                class that are counted, its lowest credit is 1 - |1 - 16| / 1 = -14.
        """
        self.detector = detector
        self.threshold, self.counting_threshold = threshold, counting_threshold
        self.clamped = clamped
        self.scale = (0.0 if clamped else 2.0 - MAX_PER_CLASS, 1.0)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        """Returns the score that is trained on, with the parts "strict" and "continuous".

        Args:
            images: [B, 3, height, width], float, in [0, 1].
            prompts: B prompts; those without a "tag" are not judged.

        Raises:
            RewardError: if the numbers differ, or metadata break GenEval's schema.
        """
        check_pairs(images, prompts)
        rows = [row for row, prompt in enumerate(prompts) if "tag" in prompt.metadata]
        for row in rows:
            check_metadata(prompts[row], self.detector.classes, self.detector.colors)
        values, strict, continuous = torch.zeros(3, len(prompts))
        valid = torch.zeros(len(prompts), dtype=torch.bool)
        pixels = to_pixels(images[rows]) if rows else np.zeros((0, 1, 1, 3), np.uint8)
        colored = [_colored(prompts[row].metadata) for row in rows]
        for row, detections in zip(rows, self.detector.detect(pixels, colored), strict=True):
            metadata = prompts[row].metadata
            objects = self._objects(detections, metadata["tag"])
            values[row] = continuous_score(objects, metadata, clamped=self.clamped)
            strict[row] = float(strict_score(objects, metadata))
            continuous[row] = continuous_score(objects, metadata)
            valid[row] = True
        return RewardScores(
            self.name, values, valid, self.scale, {"strict": strict, "continuous": continuous}
        )

    def _objects(self, detections: Sequence[Detection], tag: str) -> Objects:
        threshold = self.counting_threshold if tag == "counting" else self.threshold
        kept = by_class([one for one in detections if one.score > threshold])
        return {label: group[:MAX_PER_CLASS] for label, group in kept.items()}


def strict_score(objects: Objects, metadata: Mapping[str, Any]) -> bool:
    """Returns whether all requirements hold by GenEval's own rules.

    Args:
        objects: detections by class, best score first.
        metadata: {"include": [{"class", "count", "color"?, "position"?}], "exclude"?: [{"class", "count"}]}.
    """
    groups: list[Sequence[Detection] | None] = []
    for need in metadata["include"]:
        group = objects.get(need["class"], ())[: need["count"]]
        fits = len(group) == need["count"]
        fits = fits and ("color" not in need or all(one.color == need["color"] for one in group))
        fits = fits and ("position" not in need or _in_position(group, need["position"], groups))
        groups.append(group if fits else None)
    excess = any(
        len(objects.get(limit["class"], ())) >= limit["count"] for limit in metadata.get("exclude", ())
    )
    return None not in groups and not excess


def continuous_score(objects: Objects, metadata: Mapping[str, Any], *, clamped: bool = True) -> float:
    """Returns the mean of the partial credits, in [0, 1], or below 0 if they are not clamped.

    Each requirement gives 1 - |n - found| / n, clamped at 0. One with a colour or a position gives a second
    credit: 0 where the number is wrong, else 1 - |n - rightly coloured| / n, or 1 / 0 for the position.

    Source: the reward server of Flow-GRPO, arXiv 2505.05470, with clamped=False. Differs: the clamp at 0.
    """
    groups: list[Sequence[Detection] | None] = []
    credits: list[float] = []
    for need in metadata["include"]:
        group, count = objects.get(need["class"], ()), need["count"]
        credit = 1 - abs(count - len(group)) / count
        credits.append(max(0.0, credit) if clamped else credit)
        fits = len(group) == count
        if "color" in need:
            colored = sum(one.color == need["color"] for one in group) if fits else 0
            credits.append(colored / count)
            fits = colored == count
        if "position" in need:
            fits = fits and _in_position(group, need["position"], groups)
            credits.append(float(fits))
        groups.append(group if fits else None)
    return sum(credits) / len(credits)


def relations(subject: Detection, target: Detection, threshold: float = 0.1) -> set[str]:
    """Returns where the subject lies as seen from the target; may be two relations or none.

    The offset of the box centres is shrunk on each axis by threshold times the summed sides, clipped at 0,
    and divided by the length of the *unshrunk* offset; a component beyond .5 is a relation.
    Source: GenEval, arXiv 2310.11513, its evaluation code.
    """
    a, b = np.asarray(subject.box).reshape(2, 2), np.asarray(target.box).reshape(2, 2)
    offset = a.mean(axis=0) - b.mean(axis=0)
    sides = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    shrunk = np.maximum(np.abs(offset) - threshold * sides, 0) * np.sign(offset)
    if np.all(np.abs(shrunk) < 1e-3):
        return set()
    dx, dy = shrunk / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, yes in holds.items() if yes}


def check_metadata(prompt: Prompt, classes: Sequence[str], colors: Sequence[str]) -> None:
    """Checks that a prompt's metadata follow GenEval's schema and ask for nothing the detector cannot see.

    Raises:
        RewardError: if they do not.
    """
    metadata = prompt.metadata
    _known(metadata["tag"], TAGS, "tag", prompt)
    include, exclude = metadata.get("include"), metadata.get("exclude", [])
    if not isinstance(include, Sequence) or not include or not isinstance(exclude, Sequence):
        raise _malformed(prompt, "include", include, "a list with at least one requirement")
    for entry in [*include, *exclude]:
        if not isinstance(entry, Mapping):
            raise _malformed(prompt, "requirement", entry, "an object with class and count")
        _known(entry.get("class"), classes, "class", prompt)
        count = entry.get("count")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise _malformed(prompt, "count", count, "a whole number from 1")
    for index, entry in enumerate(include):
        if "color" in entry:
            _known(entry["color"], colors, "color", prompt)
        if "position" in entry:
            position = entry["position"]
            if not isinstance(position, Sequence) or isinstance(position, str) or len(position) != 2:
                raise _malformed(prompt, "position", position, '["left of", 0]')
            _known(position[0], RELATIONS, "relation", prompt)
            if position[1] not in range(index):
                raise _malformed(prompt, "position", position, "the index of an earlier entry of include")


def _colored(metadata: Mapping[str, Any]) -> set[str]:
    """Returns the classes whose colour the prompt names."""
    return {need["class"] for need in metadata["include"] if "color" in need}


def _in_position(
    group: Sequence[Detection], position: Sequence[Any], groups: Sequence[Sequence[Detection] | None]
) -> bool:
    """Returns whether all of `group` stands in the relation to all of the group that `position` points at."""
    relation, index = position
    targets = groups[index]
    return targets is not None and all(
        relation in relations(one, other) for one in group for other in targets
    )


def _known(value: Any, known: Sequence[str], kind: str, prompt: Prompt) -> None:
    if value not in known:
        hint = nearest(value, known) if isinstance(value, str) else ""
        raise _malformed(prompt, kind, value, ", ".join(known), hint)


def _malformed(prompt: Prompt, key: str, value: object, allowed: str, hint: str = "") -> RewardError:
    return RewardError(
        f"prompt {prompt.text!r}: unusable {key} in its GenEval metadata",
        value=value,
        allowed=allowed,
        fix="correct the metadata of this prompt" + (f".{hint}" if hint else ""),
    )


def build(settings: GenEvalSettings, device: torch.device | str) -> GenEvalReward:
    """Returns the reward that settings describe."""
    clamped = settings.training_score == "continuous"
    if settings.palette is not None:
        return GenEvalReward(PaletteDetector(locate(settings.palette, key="palette")), clamped=clamped)
    assert settings.detector is not None, settings
    assert settings.colors is not None, settings
    detector = Mask2FormerDetector(
        locate_model(settings.detector, key="detector"),
        ColorClassifier(locate_model(settings.colors, key="colors"), device=device),
        floor=min(settings.threshold, settings.counting_threshold),
        side=settings.side,
        device=device,
        batch_size=settings.batch_size,
    )
    return GenEvalReward(
        detector,
        threshold=settings.threshold,
        counting_threshold=settings.counting_threshold,
        clamped=clamped,
    )
