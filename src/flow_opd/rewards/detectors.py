"""Who finds the objects: the contract of a detector, and one for worlds of plain vivid shapes."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from flow_opd.errors import RewardError

Array = NDArray[np.float32]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One object in a picture."""

    label: str
    color: str | None  # None = none of the known colours, or not classified
    box: Box  # left, top, right, bottom, pixels
    score: float  # 0 .. 1


class Detector(Protocol):
    """Finds objects of known classes and names their colours."""

    classes: tuple[str, ...]
    colors: tuple[str, ...]

    def detect(
        self, images: NDArray[np.uint8], colored: Sequence[Collection[str]] | None = None
    ) -> list[list[Detection]]:
        """Returns the objects in each RGB picture, uint8 [B, height, width, 3], best score first.

        Args:
            images: the pictures.
            colored: for each picture the classes whose colours are needed, None = all; other objects may come
                without a colour.
        """
        ...


class PaletteDetector:
    """Finds vivid circles, squares and triangles on muted backgrounds, by colour contrast and outline.

    Works in the opponent plane (R - G, (R + G)/2 - B). It is linear in RGB, so the coverage of a pixel at an
    edge is its share of the way from background to object; and shadows hardly move in it. The outline that
    fits best inside the box names the shape; its overlap (soft IoU) with the coverage is the score.
    """

    def __init__(self, palette: Path) -> None:
        """Reads a palette: a JSON file with classes, hues and thresholds, as the miniature writes it.

        Raises:
            RewardError: if the file cannot be read, lacks an entry, or names a class without an outline.
        """
        try:
            entries = json.loads(palette.read_text(encoding="utf-8"))
            self.classes: tuple[str, ...] = tuple(entries["classes"])
            self._hues: dict[str, tuple[float, float]] = {
                name: (float(low), float(high)) for name, (low, high) in entries["hues"].items()
            }
            self._background_vividness = float(entries["background_vividness"])
            self._object_vividness = float(entries["object_vividness"])
            self._contrast = float(entries["contrast"])
            self._minimum_side = float(entries["minimum_side"])
            self._minimum_score = float(entries["minimum_score"])
            unknown = set(self.classes) - {"circle", "square", "triangle"}
            if unknown:
                raise ValueError(f"no outline for {', '.join(sorted(unknown))}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RewardError(
                f"unusable palette {palette}",
                value=repr(error),
                allowed="a JSON file with classes, hues and thresholds",
                fix="take asset:rewards/palette.json, or write its keys for your own world",
            ) from error
        self.colors = tuple(self._hues)

    def detect(
        self, images: NDArray[np.uint8], colored: Sequence[Collection[str]] | None = None
    ) -> list[list[Detection]]:
        """Returns the objects in each RGB picture, uint8 [B, height, width, 3], best score first.

        All of them have their colours, whatever `colored` says: nothing is found without.
        """
        return [self._detect(image) for image in images]

    def _detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        opponent = _opponent(image)
        vividness = np.linalg.norm(opponent, axis=2)
        muted = opponent[vividness < self._background_vividness]
        contrast = opponent - (np.median(muted, axis=0) if len(muted) else 0)
        strength = np.linalg.norm(contrast, axis=2)
        vivid = (strength > self._contrast).astype(np.uint8)
        total, labels, stats, _ = cv2.connectedComponentsWithStats(vivid, connectivity=4)
        found: list[Detection] = []
        for index in range(1, total):
            left, top, wide, high, area = (int(value) for value in stats[index])
            if min(wide, high) < self._minimum_side or area < 0.4 * self._minimum_side**2:
                continue
            window = (slice(max(0, top - 2), top + high + 2), slice(max(0, left - 2), left + wide + 2))
            inside = labels[window] == index
            core = inside & (strength[window] >= np.median(strength[window][inside]))
            if vividness[window][core].mean() < self._object_vividness:
                continue
            coverage = _coverage(contrast[window], inside, core)
            detection = self._classify(
                coverage, self._color(image[window][core]), (window[1].start, window[0].start)
            )
            if detection is not None:
                found.append(detection)
        return sorted(found, key=lambda one: -one.score)

    def _color(self, pixels: NDArray[np.uint8]) -> str | None:
        """Returns the colour whose range of hues holds the mean of RGB pixels, [N, 3]."""
        red, green, blue = (float(value) / 255 for value in pixels.mean(axis=0))
        hue = colorsys.rgb_to_hsv(red, green, blue)[0] * 360
        for name, (low, high) in self._hues.items():
            if low <= hue < high or (low > high and (hue >= low or hue < high)):
                return name
        return None

    def _classify(self, coverage: Array, color: str | None, corner: tuple[int, int]) -> Detection | None:
        """Returns the detection whose outline fits the coverage best, or None where none fits well."""
        left, right = _extent(coverage.max(axis=0))
        top, bottom = _extent(coverage.max(axis=1))
        wide, high = right - left, bottom - top
        if min(wide, high) < self._minimum_side:
            return None
        overlaps = {
            name: _overlap(coverage, _outline(name, coverage.shape, (left, top, right, bottom)))
            for name in self.classes
        }
        label = max(overlaps, key=lambda name: overlaps[name])
        # A flat ellipse is no circle, although it fills its box like one.
        score = overlaps[label] * min(1.0, 1.25 * min(wide, high) / max(wide, high))
        if score < self._minimum_score:
            return None
        x, y = corner
        return Detection(label, color, (left + x, top + y, right + x, bottom + y), score)


def _opponent(image: NDArray[np.uint8]) -> Array:
    """Returns the opponent vectors (R - G, (R + G)/2 - B) of an RGB picture, [height, width, 2]."""
    red, green, blue = (image[:, :, channel].astype(np.float32) for channel in range(3))
    return np.asarray(np.stack([red - green, (red + green) / 2 - blue], axis=2), np.float32)


def _coverage(contrast: Array, inside: NDArray[np.bool_], core: NDArray[np.bool_]) -> Array:
    """Returns the share of each pixel that the object covers, 0 beyond the pixels next to it."""
    full = contrast[core].mean(axis=0)
    share = np.clip(contrast @ full / float(full @ full), 0, 1)
    near = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    return np.asarray(np.where(near & (share > 0.2), share, 0), np.float32)


def _extent(profile: Array) -> tuple[float, float]:
    """Returns where a profile of coverages along one axis begins and ends, in fractions of pixels."""
    solid = np.nonzero(profile >= 0.5)[0]
    if not len(solid):
        return 0.0, 0.0
    first, last = int(solid[0]), int(solid[-1])
    before = float(profile[first - 1]) if first > 0 else 0.0
    after = float(profile[last + 1]) if last + 1 < len(profile) else 0.0
    return first + 1 - float(profile[first]) - before, last + float(profile[last]) + after


def _outline(shape: str, size: tuple[int, ...], box: Box, fine: int = 4) -> Array:
    """Returns the coverage of a shape that fills `box`, on a pixel grid of `size`."""
    left, top, right, bottom = box
    x = (np.arange(size[1] * fine) + 0.5) / fine
    y = (np.arange(size[0] * fine) + 0.5) / fine
    u = np.abs(2 * (x - left) / (right - left) - 1)[None, :]
    v = (2 * (y - top) / (bottom - top) - 1)[:, None]
    if shape == "circle":
        full = u**2 + v**2 <= 1
    elif shape == "square":
        full = (u <= 1) & (np.abs(v) <= 1)
    else:
        full = (np.abs(v) <= 1) & (u <= (v + 1) / 2)
    return np.asarray(full.reshape(size[0], fine, size[1], fine).mean(axis=(1, 3)), np.float32)


def _overlap(first: Array, second: Array) -> float:
    """Returns the soft intersection over union of two coverages."""
    return float(np.minimum(first, second).sum() / np.maximum(first, second).sum())


def by_class(detections: Sequence[Detection]) -> dict[str, list[Detection]]:
    """Returns the detections of each class, best score first."""
    groups: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda one: -one.score):
        groups.setdefault(detection.label, []).append(detection)
    return groups
