"""What the world is made of: shapes, colours, backgrounds, ornaments, boards and letters.

Colours are chosen together with the detector: objects are vivid, backgrounds and ornaments are muted, so the
distance from grey tells them apart whatever the shading. Pairs of one hue are never drawn all the same.
"""

from __future__ import annotations

from typing import Any

RGB = tuple[int, int, int]

SIZE = 32  # pixels, height and width of every picture

SHAPES = ("circle", "square", "triangle")

COLORS: dict[str, RGB] = {
    "red": (222, 38, 48),
    "orange": (246, 138, 18),
    "yellow": (252, 222, 30),
    "green": (18, 158, 72),
    "blue": (32, 92, 228),
    "purple": (152, 48, 206),
}

BACKGROUNDS: dict[str, RGB] = {
    "sky": (186, 217, 240),
    "grass": (122, 160, 100),
    "desert": (232, 207, 163),
    "night": (36, 40, 72),
}

PLACES = {"sky": "in the sky", "grass": "on the grass", "desert": "in the desert", "night": "at night"}

# Sky stays free of these, so that any set of colours can be drawn somewhere.
FORBIDDEN = frozenset(
    {("green", "grass"), ("yellow", "desert"), ("orange", "desert"), ("blue", "night"), ("purple", "night")}
)

ORNAMENTS: dict[str, tuple[str, ...]] = {
    "sky": ("sun", "cloud"),
    "grass": ("sun", "cloud"),
    "desert": ("sun", "cloud"),
    "night": ("moon", "star"),
}

# (board, ink)
BOARDS: tuple[tuple[RGB, RGB], ...] = (
    ((250, 247, 238), (28, 28, 34)),
    ((255, 236, 170), (120, 26, 30)),
    ((222, 238, 252), (20, 44, 120)),
)

LETTERS = "behkmorstx"
WORD_LENGTH = 3

# Degrees of hue, [low, high); between the bins lie hues that no object has.
HUES: dict[str, tuple[int, int]] = {
    "red": (335, 15),
    "orange": (15, 41),
    "yellow": (41, 75),
    "green": (85, 185),
    "blue": (195, 248),
    "purple": (248, 320),
}


def allowed(color: str, background: str) -> bool:
    """Returns whether an object of `color` stands out on `background`."""
    return (color, background) not in FORBIDDEN


def backgrounds_for(colors: tuple[str, ...]) -> list[str]:
    """Returns the backgrounds on which every one of `colors` stands out; never empty."""
    return [name for name in BACKGROUNDS if all(allowed(color, name) for color in colors)]


def detector_palette() -> dict[str, Any]:
    """Returns what a palette detector must know of this world, as plain JSON values.

    `hues` are degrees; vividness is the length of the opponent vector (R - G, (R + G)/2 - B), for channels
    from 0 to 255: backgrounds lie below `background_vividness`, ornaments below `object_vividness`, and an
    object differs from its background by more than `contrast`.
    """
    return {
        "classes": list(SHAPES),
        "hues": {name: list(bounds) for name, bounds in HUES.items()},
        "background_vividness": 88.0,
        "object_vividness": 84.0,
        "contrast": 52.0,
        "minimum_side": 4.5,
        "minimum_score": 0.6,
    }
