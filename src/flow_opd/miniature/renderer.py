"""Scenes to pixels: masks are drawn four times too large, averaged down, and laid over the background."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flow_opd.miniature.palette import BACKGROUNDS, BOARDS, COLORS, RGB, SIZE
from flow_opd.miniature.scene import Scene, Sign

FloatImage = NDArray[np.float32]
Picture = NDArray[np.uint8]

SCALE = 4  # supersampling
CANVAS = SIZE * SCALE
SHADOW = 0.42  # how much of the background's light a shadow takes
SLOT = 8.4  # pixels from one letter of a sign to the next
CAP = 12.0  # pixels, height of a capital


def render(scene: Scene) -> Picture:
    """Returns the clean picture of a scene, uint8 [32, 32, 3], RGB."""
    image = _background(scene)
    if scene.ornament is not None:
        _draw_ornament(image, scene)
    if scene.sign is not None:
        _draw_sign(image, scene, scene.sign)
    masks = [_shape_mask(thing.shape, thing.x, thing.y, thing.side) for thing in scene.things]
    if scene.style.shadow:
        for mask in masks:
            _darken(image, mask)
    for thing, mask in zip(scene.things, masks, strict=True):
        _paint(image, mask, COLORS[thing.color])
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _background(scene: Scene) -> FloatImage:
    """Returns the background [32, 32, 3]: its colour, lighter at the top and darker below by the gradient."""
    base = np.asarray(BACKGROUNDS[scene.background], np.float32)
    down = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None]
    light = scene.style.gradient * np.clip(0.45 - down, 0, None)
    dark = 1 - 0.55 * scene.style.gradient * np.clip(down - 0.3, 0, None)
    rows = (base + (255 - base) * light) * dark
    return np.ascontiguousarray(np.broadcast_to(rows[:, None], (SIZE, SIZE, 3)), dtype=np.float32)


def _paint(image: FloatImage, mask: FloatImage, color: RGB, opacity: float = 1.0) -> None:
    """Lays `color` over `image` in place where `mask` is 1."""
    weight = (mask * opacity)[:, :, None]
    image += weight * (np.asarray(color, np.float32) - image)


def _darken(image: FloatImage, mask: FloatImage) -> None:
    """Drops the soft shadow of `mask` to the lower right, in place."""
    shift = np.asarray([[1, 0, 1.3], [0, 1, 1.6]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(mask, shift, (SIZE, SIZE)), (0, 0), 0.7)
    image *= 1 - SHADOW * shadow[:, :, None]


def _polygon_mask(points: list[tuple[float, float]]) -> FloatImage:
    """Returns the coverage of a convex polygon given in pixels, [32, 32] in [0, 1]."""
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    fixed = np.rint((np.asarray(points) * SCALE - 0.5) * 16).astype(np.int32)
    cv2.fillConvexPoly(canvas, fixed, 255, shift=4)
    return _shrink(canvas)


def _circle_mask(x: float, y: float, radius: float) -> FloatImage:
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    centre = (round((x * SCALE - 0.5) * 16), round((y * SCALE - 0.5) * 16))
    cv2.circle(canvas, centre, round(radius * SCALE * 16), 255, -1, shift=4)
    return _shrink(canvas)


def _shape_mask(shape: str, x: float, y: float, side: float) -> FloatImage:
    """Returns the coverage of a shape centred at (x, y) inside a box of `side` pixels, [32, 32] in [0, 1]."""
    half = side / 2
    if shape == "circle":
        return _circle_mask(x, y, half * 0.98)
    if shape == "square":
        half *= 0.9
        return _polygon_mask(
            [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
        )
    return _polygon_mask([(x, y - half * 0.94), (x + half, y + half * 0.94), (x - half, y + half * 0.94)])


def _shrink(canvas: Picture) -> FloatImage:
    small = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32) / np.float32(255)


def _draw_ornament(image: FloatImage, scene: Scene) -> None:
    """Draws the ornament into its corner; muted colours keep it from being taken for a thing."""
    x = SIZE - 4.0 if scene.ornament_right else 4.0
    if scene.ornament == "sun":
        _paint(image, _circle_mask(x, 4.0, 3.2), (255, 246, 205), 0.55)
        _paint(image, _circle_mask(x, 4.0, 2.2), (255, 243, 190))
    elif scene.ornament == "cloud":
        for dx, dy, radius in ((-1.6, 0.6, 1.6), (1.5, 0.7, 1.5), (0.0, -0.4, 1.9)):
            _paint(image, _circle_mask(x + dx, 3.8 + dy, radius), (250, 252, 253))
    elif scene.ornament == "moon":
        bite = _circle_mask(x + 1.5, 3.4, 2.4)
        _paint(image, _circle_mask(x, 4.0, 2.9) * (1 - bite), (236, 234, 214))
    else:
        assert scene.ornament == "star", scene.ornament
        for wide, high in ((0.8, 3.2), (3.2, 0.8)):
            _paint(
                image,
                _polygon_mask([(x, 4 - high), (x + wide, 4.0), (x, 4 + high), (x - wide, 4.0)]),
                (240, 238, 222),
            )


def _draw_sign(image: FloatImage, scene: Scene, sign: Sign) -> None:
    """Draws a board on a post with the word in capitals; style.size widens the board and the letters."""
    zoom = 0.94 + 0.1 * scene.style.size
    x, y = SIZE / 2 + sign.x * 0.8, SIZE / 2 - 1 + sign.y
    wide, high = 14.0 * zoom, 9.5 * zoom
    board = _polygon_mask(
        [(x - wide, y - high), (x + wide, y - high), (x + wide, y + high), (x - wide, y + high)]
    )
    post = _polygon_mask([(x - 1.5, y), (x + 1.5, y), (x + 1.5, SIZE + 1.0), (x - 1.5, SIZE + 1.0)])
    if scene.style.shadow:
        _darken(image, np.maximum(board, post))
    _paint(image, post, (112, 92, 78))
    paper, ink = BOARDS[sign.board]
    _paint(image, board, paper)
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    for place, letter in enumerate(sign.word):
        glyph = _glyph(letter.upper(), round(CAP * zoom * SCALE))
        left = round((x + (place - (len(sign.word) - 1) / 2) * SLOT * zoom) * SCALE - glyph.shape[1] / 2)
        top = round(y * SCALE - glyph.shape[0] / 2)
        window = canvas[top : top + glyph.shape[0], left : left + glyph.shape[1]]
        np.maximum(window, glyph, out=window)
    _paint(image, _shrink(canvas), ink)


@lru_cache(maxsize=512)
def _glyph(letter: str, height: int) -> Picture:
    """Returns the coverage of one capital, [height, width], in Pillow's own font, a little bolder.

    Wide letters are squeezed to their slot, so that every letter of a sign keeps its place.
    """
    font = ImageFont.load_default(160)
    page = Image.new("L", (320, 320))
    ImageDraw.Draw(page).text((60, 40), letter, fill=255, font=font, stroke_width=5)
    left, top, right, bottom = page.getbbox() or (0, 0, 1, 1)
    width = min(round((right - left) * height / (bottom - top)), round(height * 7.4 / CAP))
    glyph = page.crop((left, top, right, bottom)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(glyph, np.uint8)
