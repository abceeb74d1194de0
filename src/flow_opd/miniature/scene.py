"""What a picture shows: things at places, in a style, on a background; or a sign that says a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from flow_opd.miniature.palette import BOARDS, COLORS, ORNAMENTS, allowed, backgrounds_for

Array = NDArray[np.float64]

# Sides of the box of one thing in pixels (small, middle, large), by the number of things.
SIDES = {1: (11.0, 14.0, 17.0), 2: (8.5, 9.5, 10.5), 3: (8.0, 9.0, 10.0), 4: (8.0, 9.0, 10.0)}
# Things stand in few places, below the ornament's band, so that a small model learns shapes and counts
# instead of a continuum of layouts (docs/LOG.md has the numbers).
MIDDLE = (16.0, 18.0)
LEFT, RIGHT = (9.0, 18.0), (23.0, 18.0)
UPPER, LOWER = (16.0, 12.5), (16.0, 25.0)
QUARTERS = ((9.0, 12.5), (23.0, 12.5), (9.0, 25.0), (23.0, 25.0))
SHIFT = 0.7  # pixels by which a whole arrangement may be off


@dataclass(frozen=True)
class Style:
    """Traits that nobody asked for: drawn at random in the data, liked or not by the preference model."""

    size: float  # 0 small, 0.5 middle, 1 large
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
        float(np.floor(3 * draws[0]) / 2),
        bool(draws[1] < 0.5),
        float(low + (high - low) * draws[2]),
        bool(draws[3] < 0.5),
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
    centres = _layout(len(names), relation, rng)
    side = SIDES[len(names)][round(2 * style.size)]
    things = tuple(
        Thing(shape, color, float(x), float(y), side)
        for (shape, color), (x, y) in zip(names, centres, strict=True)
    )
    return Scene(background, style, things, ornament, right)


def _sign_scene(word: str, rng: Generator, style: Style) -> Scene:
    background = _choice(list(ORNAMENTS), rng)
    shift = rng.uniform(-1.0, 1.0, 2)
    sign = Sign(word, int(rng.integers(len(BOARDS))), float(shift[0]), float(shift[1]))
    return Scene(background, style, sign=sign)


def _layout(count: int, relation: str | None, rng: Generator) -> Array:
    """Returns centres [count, 2] of things; a relation says where the second stands, seen from the first."""
    if count == 1:
        places = [MIDDLE]
    elif count == 2:
        pairs = {
            "right of": (LEFT, RIGHT),
            "left of": (RIGHT, LEFT),
            "below": (UPPER, LOWER),
            "above": (LOWER, UPPER),
        }
        places = list(pairs[relation or _choice(list(pairs), rng)])
    else:
        places = [QUARTERS[place] for place in rng.permutation(len(QUARTERS))[:count]]
    return np.asarray(places) + rng.uniform(-SHIFT, SHIFT, 2)


def _choice(values: Sequence[str], rng: Generator) -> str:
    return values[int(rng.integers(len(values)))]
