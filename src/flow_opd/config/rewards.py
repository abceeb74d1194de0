"""One specification per reward: what to load, and how much it counts."""

from __future__ import annotations

import string
from typing import Annotated, Literal

from pydantic import Field

from flow_opd.config.base import Name, PositiveFloat, PositiveInt, Settings


class _RewardSettings(Settings):
    weight: PositiveFloat = 1.0
    """Factor of this reward in the weighted sum."""


class GenEvalSettings(_RewardSettings):
    """Composition: are the objects of the prompt there, in number, colour and place? Trains on the continuous
    score and reports the strict one beside it."""

    name: Literal["geneval"]
    """Which reward this is."""
    palette: Name
    """Palette file of the detector that knows the objects by their colours, or 'asset:NAME'."""


class OCRSettings(_RewardSettings):
    """Text: 1 - edit distance / length of what an OCR engine reads."""

    name: Literal["ocr"]
    """Which reward this is."""
    alphabet: Name = string.ascii_lowercase
    """Letters that may be read, in lower case."""
    width: PositiveInt = 96
    """Pixels to which a picture is widened before reading; words beyond 6 letters need 128 and more."""
    batch_size: PositiveInt = 32
    """Images that the engine reads at once."""


class DeQASettings(_RewardSettings):
    """Quality without a reference, from 1 to 5."""

    name: Literal["deqa"]
    """Which reward this is."""
    path: Name
    """Folder of the quality model, or 'asset:NAME'."""


class PickScoreSettings(_RewardSettings):
    """Human preference: logit scale times cosine of image and text under CLIP."""

    name: Literal["pickscore"]
    """Which reward this is."""
    path: Name
    """Folder of the CLIP model, 'asset:NAME' or hub id."""


RewardSpec = Annotated[
    GenEvalSettings | OCRSettings | DeQASettings | PickScoreSettings, Field(discriminator="name")
]
