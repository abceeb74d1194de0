"""Damage to pictures, as the web has it: blur, noise, low contrast, compression."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

KINDS = ("blur", "noise", "contrast", "compression")


def degrade(image: Picture, kind: str, strength: float, rng: Generator) -> Picture:
    """Returns a damaged copy of a picture, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, 3], RGB.
        kind: one of `KINDS`.
        strength: 0 (hardly visible) to 1 (hardly recognisable).
        rng: draws the noise.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind == "blur":
        return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.35 + 1.5 * strength), np.uint8)
    if kind == "noise":
        noisy = image + rng.standard_normal(image.shape, np.float32) * np.float32(3 + 37 * strength)
    elif kind == "contrast":
        noisy = image + (image.mean() * 0.6 + 128 * 0.4 - image) * (0.12 + 0.68 * strength)
    elif kind == "compression":
        quality = round(42 * (1 - strength) ** 1.5 + 6)
        _, packed = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        unpacked = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
        return np.ascontiguousarray(unpacked[:, :, ::-1])
    else:
        raise ValueError(f"unknown degradation {kind!r}; known: {', '.join(KINDS)}")
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def random_degradation(rng: Generator) -> tuple[str, float]:
    """Returns a kind and a strength in [0.05, 1]."""
    return KINDS[int(rng.integers(len(KINDS)))], float(rng.uniform(0.05, 1.0))
