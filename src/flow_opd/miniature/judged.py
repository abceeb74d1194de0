"""Pictures with known faults: what the quality and the preference model learn from, and are measured on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.random import Generator
from numpy.typing import NDArray

from flow_opd.miniature.autoencoder import as_pixels
from flow_opd.miniature.captions import COMPOSITION, PREFERENCE, QUALITY, TEXT, Metadata, caption, misread
from flow_opd.miniature.degradations import KINDS, Picture, degrade
from flow_opd.miniature.palette import SIZE
from flow_opd.miniature.prompts import SPLITS, TEST_SHARE, prompts
from flow_opd.miniature.renderer import render
from flow_opd.miniature.scene import Scene, Style, random_style, scene_for
from flow_opd.types import Prompt

CLEAN, BLANK = "clean", "blank"
# Faults of flow samples, made in the latents: detail that was never finished, and two scenes in one picture.
UNFINISHED, GHOST = "unfinished", "ghost"
FAULTS = (CLEAN, *KINDS, UNFINISHED, GHOST, BLANK)
FAULT_ODDS = (0.30, 0.14, 0.14, 0.14, 0.14, 0.05, 0.05, 0.04)
WRONG_ODDS = (0.5, 0.35, 0.15)  # none, one, two facts
PICTURES = 4  # of each caption
SHARES = ((COMPOSITION, 0.4), (TEXT, 0.1), (PREFERENCE, 0.3), (QUALITY, 0.2))
# What differs between the pictures of one caption: everything, or one thing alone.
DIFFERENCES = ("all", "fact", "damage", "style")
DIFFERENCE_ODDS = (0.35, 0.25, 0.2, 0.2)


@dataclass(frozen=True)
class JudgedPictures:
    """N captions with K pictures each, and the truth about every picture."""

    captions: NDArray[np.str_]  # [N]
    tasks: NDArray[np.str_]  # [N]
    differs: NDArray[np.int64]  # [N], index into DIFFERENCES
    pictures: NDArray[np.uint8]  # [N, K, 32, 32, 3], as rendered
    rebuilt: NDArray[np.uint8]  # [R, K, 32, 32, 3], the first R <= N through the VAE, as a flow model's come
    fault: NDArray[np.int64]  # [N, K], index into FAULTS
    strength: NDArray[np.float32]  # [N, K], 0 to 1
    wrong: NDArray[np.int64]  # [N, K], facts of the caption that the picture contradicts
    style: NDArray[np.float32]  # [N, K, 4]: size, shadow, gradient, ornament, each 0 to 1

    def __len__(self) -> int:
        return len(self.captions)

    def choose(
        self, rows: NDArray[np.int64], through_vae: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Returns captions [M] and their pictures [M, K, 32, 32, 3].

        Args:
            rows: captions, [M]; where the VAE is asked for, one that it has rebuilt takes the place.
            through_vae: whether to take the rebuilt pictures, [M].
        """
        through_vae = through_vae & (len(self.rebuilt) > 0)
        rows = np.where(through_vae, rows % max(1, len(self.rebuilt)), rows)
        pictures = self.pictures[rows]
        pictures[through_vae] = self.rebuilt[rows[through_vae]]
        return rows, pictures

    def save(self, folder: Path) -> None:
        """Writes one file per field."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))
        (folder / "faults.json").write_text(json.dumps(FAULTS))

    @staticmethod
    def load(folder: Path) -> JudgedPictures:
        """Reads what `save` wrote."""
        return JudgedPictures(
            **{field.name: np.load(folder / f"{field.name}.npy") for field in fields(JudgedPictures)}
        )


@dataclass(frozen=True)
class _Drawn:
    picture: Picture
    fault: str
    strength: float
    wrong: int
    style: tuple[float, float, float, float]


def judged_pictures(
    seed: int,
    split: str,
    count: int,
    *,
    vae: AutoencoderKL | None = None,
    rebuilt: int = 0,
    differs: str | None = None,
) -> JudgedPictures:
    """Returns `count` captions with `PICTURES` pictures each, drawn from (seed, split) alone.

    Captions come from the prompts of both splits, for a reward must judge them all; what "test" holds out are
    the pictures, with their scenes, styles and faults.

    Args:
        seed: root of all draws.
        split: "train" or "test"; their draws are independent.
        count: captions.
        vae: rebuilds pictures and makes the faults of flow samples.
        rebuilt: captions whose pictures are rebuilt, from the start; the VAE costs more than the drawing.
        differs: what differs between the pictures of a caption; drawn for each caption where None.
    """
    part = SPLITS.index(split)
    asked = _captions(seed, part, count)
    rng = np.random.default_rng((seed, 101, part))
    if differs is None:
        kinds = rng.choice(len(DIFFERENCES), count, p=DIFFERENCE_ODDS)
    else:
        kinds = np.full(count, DIFFERENCES.index(differs))
    drawn = [
        _pictures(prompt.metadata, DIFFERENCES[which], rng, flow_faults=place < rebuilt)
        for place, (prompt, which) in enumerate(zip(asked, kinds, strict=True))
    ]
    flat = [one for row in drawn for one in row]
    shape = (count, PICTURES)
    plain = np.stack([one.picture for one in flat])
    fault = np.asarray([FAULTS.index(one.fault) for one in flat])
    strength = np.asarray([one.strength for one in flat], np.float32)
    through = plain[:0]
    if rebuilt:
        assert vae is not None, "only a VAE can rebuild pictures"
        rows = slice(0, rebuilt * PICTURES)
        through = rebuild(vae, plain[rows], fault[rows], strength[rows], seed)
        in_latents = np.isin(fault[rows], [FAULTS.index(UNFINISHED), FAULTS.index(GHOST)])
        plain[rows][in_latents] = through[in_latents]
    return JudgedPictures(
        captions=np.asarray([prompt.text for prompt in asked]),
        tasks=np.asarray([prompt.task for prompt in asked]),
        differs=kinds,
        pictures=plain.reshape(*shape, SIZE, SIZE, 3),
        rebuilt=through.reshape(-1, PICTURES, SIZE, SIZE, 3),
        fault=fault.reshape(shape),
        strength=strength.reshape(shape),
        wrong=np.asarray([one.wrong for one in flat]).reshape(shape),
        style=np.asarray([one.style for one in flat], np.float32).reshape(*shape, 4),
    )


def rebuild(
    vae: AutoencoderKL,
    pictures: NDArray[np.uint8],
    fault: NDArray[np.int64],
    strength: NDArray[np.float32],
    seed: int,
) -> NDArray[np.uint8]:
    """Returns pictures [M, 32, 32, 3] after the VAE's encoder and decoder, flow faults put in between.

    Args:
        vae: the miniature's.
        pictures: uint8 [M, 32, 32, 3].
        fault: index into `FAULTS`, [M].
        strength: 0 to 1, [M].
        seed: of the noise that stands for unfinished detail.
    """
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(pictures), 256):
        rows = slice(start, start + 256)
        with torch.no_grad():
            latents = vae.encode(as_pixels(pictures[rows])).latent_dist.mean
            amount = torch.from_numpy(strength[rows]).view(-1, 1, 1, 1)
            kind = torch.from_numpy(fault[rows]).view(-1, 1, 1, 1)
            noise = torch.randn(latents.shape, generator=draw) / vae.config.scaling_factor
            unfinished = latents + 0.8 * amount * noise
            ghost = latents + 0.5 * amount * (latents.roll(PICTURES, 0) - latents)
            latents = torch.where(kind == FAULTS.index(UNFINISHED), unfinished, latents)
            latents = torch.where(kind == FAULTS.index(GHOST), ghost, latents)
            pixels = vae.decode(latents).sample
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        parts.append(levels.permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def _captions(seed: int, part: int, count: int) -> list[Prompt]:
    """Returns prompts of all tasks and both splits in the proportions of `SHARES`, shuffled."""
    asked = [
        prompt
        for task, share in SHARES
        for split, portion in (("train", 1 - TEST_SHARE), ("test", TEST_SHARE))
        for prompt in prompts(task, split, math.ceil(count * share * portion), seed + part)
    ]
    order = np.random.default_rng((seed, 100, part)).permutation(len(asked))
    return [asked[place] for place in order[:count]]


def _pictures(
    metadata: Mapping[str, object], differs: str, rng: Generator, *, flow_faults: bool
) -> list[_Drawn]:
    """Returns the pictures of one caption, which differ in `differs` only where that is one thing."""
    shown, style, fault = _misread(dict(metadata), rng), random_style(rng), (CLEAN, 0.0)
    drawn = []
    for _ in range(PICTURES):
        if differs in ("all", "fact"):
            shown = _misread(dict(metadata), rng)
        if differs in ("all", "style"):
            style = random_style(rng)
        if differs in ("all", "damage"):
            fault = _draw_fault(rng, flow_faults=flow_faults)
        drawn.append(_draw(*shown, style, fault, rng))
    return drawn


def _misread(metadata: Metadata, rng: Generator) -> tuple[Metadata, int]:
    """Returns what a picture shows instead of `metadata`, and how many facts of it are wrong."""
    wrong = int(rng.choice(len(WRONG_ODDS), p=WRONG_ODDS))
    shown = metadata
    for _ in range(wrong):
        shown = misread(shown, rng)
    if wrong and caption(shown) == caption(metadata):  # the second change undid the first
        return misread(metadata, rng), 1
    return shown, wrong


def _draw(shown: Metadata, wrong: int, style: Style, fault: tuple[str, float], rng: Generator) -> _Drawn:
    scene = scene_for(shown, rng, style)
    name, strength = fault
    if name == BLANK:
        return _Drawn(_blank(scene, rng), BLANK, 1.0, 2, (0.0, 0.0, style.gradient, 0.0))
    picture = render(scene)
    if name in KINDS:
        picture = degrade(picture, name, strength, rng)
    size = style.size if scene.things else 0.5  # signs are all of about one size
    traits = (size, float(style.shadow), style.gradient, float(scene.ornament is not None))
    return _Drawn(picture, name, strength, wrong, traits)


def _blank(scene: Scene, rng: Generator) -> Picture:
    """Returns a picture of nothing: the background alone, or one colour."""
    if rng.random() < 0.5:
        return render(Scene(scene.background, scene.style))
    return np.full((SIZE, SIZE, 3), rng.integers(0, 256, 3), np.uint8)


def _draw_fault(rng: Generator, *, flow_faults: bool) -> tuple[str, float]:
    name = FAULTS[int(rng.choice(len(FAULTS), p=FAULT_ODDS))]
    if name in (UNFINISHED, GHOST) and not flow_faults:
        name = CLEAN
    return name, 0.0 if name == CLEAN else float(rng.uniform(0.05, 1.0))
