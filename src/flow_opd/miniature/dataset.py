"""The world as training data: pictures with captions, both as unreliable as the web."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from flow_opd.miniature.captions import (
    COMPOSITION,
    PREFERENCE,
    QUALITY,
    TAGS,
    TEXT,
    Metadata,
    caption,
    misread,
)
from flow_opd.miniature.degradations import degrade, random_degradation
from flow_opd.miniature.palette import SIZE
from flow_opd.miniature.prompts import every
from flow_opd.miniature.renderer import render
from flow_opd.miniature.scene import Scene, scene_for

SHARES = ((COMPOSITION, 0.5), (TEXT, 0.16), (PREFERENCE, 0.17), (QUALITY, 0.17))
WRONG_CAPTIONS = 1 / 3
DEGRADED_PICTURES = 1 / 2


@dataclass(frozen=True)
class Facts:
    """The truth behind a sample, for calibration; no training reads it."""

    task: str
    metadata: Metadata  # what the picture shows; a wrong caption says otherwise
    scene: Scene
    caption_right: bool
    degradation: str | None
    strength: float  # 0 where nothing was done


@dataclass(frozen=True)
class Samples:
    """Consecutive samples."""

    images: NDArray[np.uint8]  # [N, 32, 32, 3], RGB
    captions: list[str]
    facts: list[Facts]


def training_sample(seed: int, index: int) -> tuple[NDArray[np.uint8], str, Facts]:
    """Returns picture (uint8 [32, 32, 3], RGB), caption and facts of sample `index`.

    Depends on the two numbers only. A third of the captions has one fact wrong and, independently, half of
    the pictures is degraded.
    """
    rng = np.random.default_rng((seed, index))
    task, metadata = _draw(rng)
    scene = scene_for(metadata, rng)
    image = render(scene)
    right = bool(rng.random() >= WRONG_CAPTIONS)
    text = caption(metadata if right else misread(metadata, rng))
    if rng.random() >= DEGRADED_PICTURES:
        return image, text, Facts(task, metadata, scene, right, None, 0.0)
    kind, strength = random_degradation(rng)
    return degrade(image, kind, strength, rng), text, Facts(task, metadata, scene, right, kind, strength)


def dataset(seed: int, start: int, count: int, workers: int = 1) -> Samples:
    """Returns samples start .. start + count - 1, the same for any number of processes."""
    if workers <= 1:
        return _range(seed, start, count)
    chunk = -(-count // (workers * 4))
    starts = range(start, start + count, chunk)
    counts = [min(chunk, start + count - first) for first in starts]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(partial(_range, seed), starts, counts))
    return Samples(
        np.concatenate([part.images for part in parts]),
        [text for part in parts for text in part.captions],
        [fact for part in parts for fact in part.facts],
    )


def _range(seed: int, start: int, count: int) -> Samples:
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    captions: list[str] = []
    facts: list[Facts] = []
    for offset in range(count):
        images[offset], text, fact = training_sample(seed, start + offset)
        captions.append(text)
        facts.append(fact)
    return Samples(images, captions, facts)


def _draw(rng: Generator) -> tuple[str, Metadata]:
    """Returns a task and the metadata of one of its prompts; composition's tags are equally likely."""
    point = rng.random()
    for name, share in SHARES:
        task, point = name, point - share
        if point < 0:
            break
    domain = TAGS[int(rng.integers(len(TAGS)))] if task == COMPOSITION else task
    pool = every(domain)
    return task, pool[int(rng.integers(len(pool)))]
