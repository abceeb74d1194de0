"""CPU-seconds an image of the rewards that have no network on the card: what `flow-opd plan` reckons with.

    python benchmarks/reward_seconds.py [--images 16]

The page reader sees pictures of 512 pixels with a sign, the line reader and the palette those of the
miniature. One thread; time of the process, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flow_opd.config.locations import locate
from flow_opd.miniature.prompts import prompts
from flow_opd.miniature.renderer import render
from flow_opd.miniature.scene import scene_for
from flow_opd.planning.scoring import CPU_SECONDS
from flow_opd.rewards.detectors import PaletteDetector
from flow_opd.rewards.ocr import LineReader, PageReader

SIDE = 512
SIGNS = ("OPEN LATE", "Welcome home", "BAKERY 1923", "No parking")


def signs(count: int) -> list[NDArray[np.uint8]]:
    """Returns pictures of a white sign with two words."""
    pictures = []
    for index in range(count):
        picture = Image.new("RGB", (SIDE, SIDE), (120, 160, 90))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((60, 180, 450, 330), fill=(250, 250, 250))
        draw.text((80, 220), SIGNS[index % len(SIGNS)], fill=(0, 0, 0), font=ImageFont.load_default(size=48))
        pictures.append(np.asarray(picture))
    return pictures


def scenes(task: str, count: int) -> NDArray[np.uint8]:
    """Returns renders of the miniature's prompts of a task, uint8 [B, 32, 32, 3]."""
    rng = np.random.default_rng(0)
    return np.stack([render(scene_for(prompt.metadata, rng)) for prompt in prompts(task, "train", count, 0)])


def seconds(work: Callable[[], object], images: int) -> float:
    """Returns the CPU-seconds of an image, after a first call."""
    work()
    started = time.process_time()
    work()
    return (time.process_time() - started) / images


def main() -> None:
    """Measures, and prints what the plan takes beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16)
    count = parser.parse_args().images
    torch.set_num_threads(1)
    page, line = PageReader(), LineReader()
    palette = PaletteDetector(locate("asset:rewards/palette.json"))
    large, texts, things = signs(count), scenes("text", count), scenes("composition", count)
    for name, work in (
        ("page", lambda: page.read(large)),
        ("line", lambda: line.read(texts)),
        ("palette", lambda: palette.detect(things)),
    ):
        print(f"{name:8} {seconds(work, count):.4f} CPU-seconds an image, planned {CPU_SECONDS[name]}")


if __name__ == "__main__":
    main()
