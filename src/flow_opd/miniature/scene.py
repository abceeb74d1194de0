"""What a picture shows: things at places, in a style, on a background; or a sign that says a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from flow_opd.miniature.palette import BOARDS, COLORS, ORNAMENTS, SIZE, allowed, backgrounds_for

Array = NDArray[np.float64]

# Side of the box of one thing in pixels, from style.size = 0 to 1, by the number of things.
SIDES = {1: (10.0, 19.0), 2: (9.0, 13.0), 3: (8.0, 11.0), 4: (7.5, 10.0)}
GAP = 3.0  # pixels of background between two things
MARGIN = 1.0  # pixels of background between a thing and the edge
CORNER = 7.5  # pixels, side of the corner that an ornament keeps for itself
POSITION_SCORE = 0.7  # how clearly a drawn relation holds; GenEval accepts from 0.5


@dataclass(frozen=True)
class Style:
    """Traits that nobody asked for: drawn at random in the data, liked or not by the preference model."""

    size: float  # 0 small .. 1 large
    shadow: bool
    gradient: float  # 0 flat .. 1 shaded background
    ornament: bool


@dataclass(frozen=True)
class Thing:
    """One object; x, y are the centre of its box in pixels."""

    shape: str
    color: str
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Sign:
    """A board with a word; x, y are its shift from the middle in pixels."""

    word: str
    board: int
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """Everything that the renderer needs; equal scenes give equal pictures."""

    background: str
    style: Style
    things: tuple[Thing, ...] = ()
    ornament: str | None = None
    ornament_right: bool = True
    sign: Sign | None = None


def random_style(rng: Generator, medium: str | None = None) -> Style:
    """Returns a style; a painting is rather shaded and a drawing rather flat."""
    low, high = {"painting": (0.4, 1.0), "drawing": (0.0, 0.6)}.get(medium or "", (0.0, 1.0))
    draws = rng.random(4)
    return Style(
        float(draws[0]), bool(draws[1] < 0.5), float(low + (high - low) * draws[2]), bool(draws[3] < 0.5)
    )


def scene_for(metadata: Mapping[str, Any], rng: Generator, style: Style | None = None) -> Scene:
    """Returns a scene that shows exactly what `metadata` asks for; what it leaves open is drawn at random.

    Args:
        metadata: of any prompt of the miniature: {"text"} or {"include", ...}.
        rng: decides everything left open.
        style: the traits to use; random where None.
    """
    style = style or random_style(rng, metadata.get("medium"))
    if "text" in metadata:
        return _sign_scene(str(metadata["text"]), rng, style)
    include = metadata["include"]
    asked = tuple(str(entry["color"]) for entry in include if "color" in entry)
    if "background" in metadata:
        background = str(metadata["background"])
    else:
        background = _choice(backgrounds_for(asked), rng)
    palette = [color for color in COLORS if allowed(color, background)]
    names: list[tuple[str, str]] = []
    for entry in include:
        shared = entry.get("color") or (_choice(palette, rng) if rng.random() < 0.5 else None)
        names += [(entry["class"], shared or _choice(palette, rng)) for _ in range(entry["count"])]
    ornament = metadata.get("ornament") or (_choice(ORNAMENTS[background], rng) if style.ornament else None)
    right = bool(rng.random() < 0.5)
    relation = include[-1].get("position", (None,))[0]
    centres, sides = _layout(len(names), style.size, relation, _corner(ornament, right), rng)
    things = tuple(
        Thing(shape, color, float(x), float(y), float(side))
        for (shape, color), (x, y), side in zip(names, centres, sides, strict=True)
    )
    return Scene(background, style, things, ornament, right)


def _sign_scene(word: str, rng: Generator, style: Style) -> Scene:
    background = _choice(list(ORNAMENTS), rng)
    shift = rng.uniform(-1.0, 1.0, 2)
    sign = Sign(word, int(rng.integers(len(BOARDS))), float(shift[0]), float(shift[1]))
    return Scene(background, style, sign=sign)


def _corner(ornament: str | None, right: bool) -> tuple[float, float, float] | None:
    """Returns centre and side of the square that an ornament occupies."""
    if ornament is None:
        return None
    half = CORNER / 2
    return (SIZE - half if right else half, SIZE - half if ornament == "cactus" else half, CORNER)


def _layout(
    count: int, size: float, relation: str | None, corner: tuple[float, float, float] | None, rng: Generator
) -> tuple[Array, Array]:
    """Returns centres [count, 2] and sides [count] of things that keep their distance.

    Draws many layouts at once and takes the first that fits; shrinks the things a little where none does.
    """
    low, high = SIDES[count]
    sides = (low + (high - low) * size) * rng.uniform(0.94, 1.06, count)
    while True:
        half = sides[None, :, None] / 2 + MARGIN
        centres = half + rng.random((192, count, 2)) * (SIZE - 2 * half)
        fits = np.ones(len(centres), bool)
        for first in range(count):
            for second in range(first):
                offset = np.abs(centres[:, first] - centres[:, second]).max(axis=1)
                fits &= offset >= (sides[first] + sides[second]) / 2 + GAP
            if corner is not None:
                offset = np.abs(centres[:, first] - np.asarray(corner[:2])).max(axis=1)
                fits &= offset >= (sides[first] + corner[2]) / 2
        if relation is not None:
            fits &= _relation_score(centres[:, 1] - centres[:, 0], sides, relation) >= POSITION_SCORE
        if fits.any():
            return centres[int(fits.argmax())], sides
        sides = np.maximum(sides * 0.96, 6.5)


def _relation_score(offset: Array, sides: Array, relation: str) -> Array:
    """Returns GenEval's position score of offsets [N, 2] (subject minus target) for `relation`, [N]."""
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    shrunk = np.maximum(sign * offset[:, axis] - 0.1 * sides.sum(), 0.0)
    return np.asarray(shrunk / np.linalg.norm(offset, axis=1))


def _choice(values: Sequence[str], rng: Generator) -> str:
    return values[int(rng.integers(len(values)))]
