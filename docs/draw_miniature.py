"""Draws the pictures of docs/miniature.md: `python docs/draw_miniature.py` writes docs/images/."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from flow_opd.config.locations import locate
from flow_opd.miniature.degradations import KINDS, degrade
from flow_opd.miniature.prompts import prompts
from flow_opd.miniature.renderer import render
from flow_opd.miniature.scene import scene_for
from flow_opd.reports.grid import PictureRow, Pictures, compose_grid

OUT = Path(__file__).parent / "images"


def world() -> None:
    """One prompt of each kind, drawn three times, and its damage at full strength."""
    rng = np.random.default_rng(0)
    asked = [
        prompt
        for task in ("composition", "text", "preference", "quality")
        for prompt in prompts(task, "train", 6, 0)
    ]
    rows = []
    for prompt in [*asked[:6], asked[6], asked[12], asked[18]]:
        drawn = [render(scene_for(prompt.metadata, rng)) for _ in range(3)]
        damaged = [degrade(drawn[0], kind, 0.6, rng) for kind in KINDS]
        rows.append(PictureRow(prompt.text, prompt.task, 0, np.stack([*drawn, *damaged])))
    columns = ("drawn", "again", "and again", *KINDS)
    compose_grid(Pictures(columns, tuple(rows))).save(OUT / "world.png")


def curves() -> None:
    """How the parts and the teachers learnt, from the shipped manifest."""
    manifest = json.loads(locate("asset:manifest.json").read_text())
    made = {**manifest["parts"], **{f"{name} teacher": one for name, one in manifest["teachers"].items()}}
    figure, axes = plt.subplots(3, 3, figsize=(10, 7), layout="constrained")
    for axis, (name, one) in zip(axes.flat, made.items(), strict=True):
        (key, points), *_ = one["curves"].items()
        axis.plot(*zip(*points, strict=True), linewidth=1.5)
        axis.set(title=f"{name}: {key}", xlabel="step")
        axis.grid(alpha=0.3)
    figure.savefig(OUT / "curves.png", dpi=80)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    world()
    curves()
