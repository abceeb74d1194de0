"""Pictures of the same prompts and seeds under several policies: kept in a run folder, drawn as one PNG.

In a run folder, images/pictures.json lists the prompts, and each prompt has one PNG strip: the pictures
of all policies side by side, in the order of the columns, at their own size.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flow_opd.errors import DataError
from flow_opd.files import atomic_folder, write_json
from flow_opd.layout import PICTURE_LIST

INK, MUTED, PAPER = (27, 31, 36), (101, 109, 118), (255, 255, 255)


@dataclass(frozen=True)
class PictureRow:
    """One prompt and seed under all policies."""

    prompt: str
    domain: str
    seed: int
    images: NDArray[np.uint8]  # [K, H, W, 3], K policies
    notes: tuple[str, ...] = ()  # K short remarks such as scores, or none


@dataclass(frozen=True)
class Pictures:
    """The picture grid: prompts down, policies across."""

    columns: tuple[str, ...]  # K names of policies
    rows: tuple[PictureRow, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.images.dtype != np.uint8 or row.images.ndim != 4 or row.images.shape[3] != 3:
                raise _refused(row, f"{row.images.dtype} {row.images.shape}", "uint8 [K, H, W, 3]")
            if row.images.shape[0] != len(self.columns):
                raise _refused(row, row.images.shape[0], f"{len(self.columns)}, one per column")
            if row.notes and len(row.notes) != len(self.columns):
                raise _refused(row, row.notes, f"{len(self.columns)} notes, one per column, or none")


def save_pictures(pictures: Pictures, folder: Path) -> None:
    """Writes `folder`, pictures.json and one PNG strip per prompt, at once or not at all."""
    with atomic_folder(folder) as staging:
        entries = []
        for index, row in enumerate(pictures.rows):
            name = f"{index:03d}.png"
            Image.fromarray(np.concatenate(list(row.images), axis=1)).save(staging / name)
            entries.append(
                {
                    "file": name,
                    "prompt": row.prompt,
                    "domain": row.domain,
                    "seed": row.seed,
                    "notes": row.notes,
                }
            )
        write_json(staging / PICTURE_LIST, {"columns": pictures.columns, "rows": entries})


def load_pictures(folder: Path) -> Pictures | None:
    """Returns what `save_pictures` wrote, or None where there is no such folder.

    Raises:
        DataError: if the list or a strip is damaged.
    """
    listing = folder / PICTURE_LIST
    if not listing.is_file():
        return None
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
        columns = tuple(str(name) for name in content["columns"])
        rows = tuple(
            PictureRow(
                str(entry["prompt"]),
                str(entry["domain"]),
                int(entry["seed"]),
                _load_strip(folder / Path(entry["file"]).name, len(columns)),
                tuple(str(note) for note in entry["notes"]),
            )
            for entry in content["rows"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "damaged pictures of a run",
            value=f"{listing}: {error}",
            allowed="pictures.json with its PNG strips",
            fix="evaluate the run again, or remove the folder",
        ) from error
    return Pictures(columns, rows)


def compose_grid(
    pictures: Pictures, *, scale: int = 4, gap: int = 6, caption_width: int = 230, font_size: int = 15
) -> Image.Image:
    """Returns one labelled picture: a row per prompt with its caption on the left, a column per policy.

    Args:
        pictures: at least one row; all images of one size.
        scale: enlargement, nearest neighbour, so that each pixel stays a square.
        gap: pixels between tiles.
        caption_width: pixels for the captions.
        font_size: of captions and column names, pixels.
    """
    assert pictures.rows, "a grid needs a row"
    font = ImageFont.load_default(font_size)
    height, width = (side * scale for side in pictures.rows[0].images.shape[1:3])
    headings = [_wrapped(name, font, width) for name in pictures.columns]
    line = font_size + 4
    top = line * max(len(heading) for heading in headings) + 2 * gap
    size = (
        caption_width + len(pictures.columns) * (width + gap) + gap,
        top + len(pictures.rows) * (height + gap),
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        centre = caption_width + gap + column * (width + gap) + width / 2
        for index, words in enumerate(heading):
            below = top - gap - line * (len(heading) - index)
            draw.text((centre, below), words, fill=INK, font=font, anchor="ma")
    for place, row in enumerate(pictures.rows):
        y = top + place * (height + gap)
        lines = _wrapped(row.prompt, font, caption_width - 2 * gap)
        first = y + max(0, (height - line * len(lines)) // 2)
        for index, words in enumerate(lines):
            draw.text((gap, first + index * line), words, fill=INK, font=font)
        for column, image in enumerate(row.images):
            tile = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (caption_width + gap + column * (width + gap), y))
    return sheet


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """Returns an image, [H, W, 3], as the bytes of a PNG file."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _load_strip(file: Path, count: int) -> NDArray[np.uint8]:
    with Image.open(file) as strip:
        pixels = np.asarray(strip.convert("RGB"))
    if pixels.shape[1] % count:
        raise ValueError(f"{file.name} is {pixels.shape[1]} pixels wide, not a multiple of {count}")
    return np.stack(np.split(pixels, count, axis=1))


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """`text` in lines of at most `width` pixels, broken at spaces and after hyphens."""
    lines = [""]
    for piece in re.findall(r"[^\s-]*-+|[^\s-]+|\s+", text):
        if font.getlength((lines[-1] + piece).rstrip()) <= width or not lines[-1]:
            lines[-1] += piece
        else:
            lines.append(piece.lstrip())
    return [line.strip() for line in lines if line.strip()] or [""]


def _refused(row: PictureRow, value: object, allowed: str) -> DataError:
    return DataError(
        f"pictures of {row.prompt!r}", value=value, allowed=allowed, fix="pass one picture per column"
    )
