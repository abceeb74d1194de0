"""The page reader reads large pictures, in reading order, and nothing where nothing stands."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from flow_opd.config.rewards import OCRSettings
from flow_opd.rewards.ocr import OCRReward, PageReader
from flow_opd.types import Prompt

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reader() -> PageReader:
    return PageReader()


def page(*lines: str) -> np.ndarray:
    """Returns a poster of 384 pixels with a coloured margin and these lines."""
    image = Image.new("RGB", (384, 384), (180, 60, 40))
    draw = ImageDraw.Draw(image)
    draw.rectangle((30, 60, 354, 320), fill="white")
    for place, line in enumerate(lines):
        draw.text((50, 80 + 70 * place), line, font=ImageFont.load_default(40), fill=(20, 20, 60))
    return np.asarray(image)


def test_lines_are_read_in_order(reader: PageReader) -> None:
    assert reader.read([page("OPEN DAY", "on Friday", "at noon"), page("bakery")]) == [
        "open day on friday at noon",
        "bakery",
    ]


def test_an_empty_picture_says_nothing(reader: PageReader) -> None:
    assert reader.read([page(), np.full((64, 64, 3), 128, np.uint8)]) == ["", ""]


def test_the_reward_of_several_words(reader: PageReader) -> None:
    images = torch.stack([torch.tensor(page("OPEN DAY")).permute(2, 0, 1) / 255] * 2)
    asked = [Prompt("a poster", "text", {"text": text}) for text in ("Open Day", "Open Tuesday")]
    scores = OCRReward(reader).score(images, asked)
    assert scores.values[0] == 1
    assert scores.values[1] == pytest.approx(1 - 4 / 11)  # "openday" lacks "tues" of "opentuesday"


def test_settings_of_the_other_reader_are_refused() -> None:
    assert OCRSettings(name="ocr", reader="page").reader == "page"
    with pytest.raises(ValueError, match="page reader does not have"):
        OCRSettings(name="ocr", reader="page", width=128)
