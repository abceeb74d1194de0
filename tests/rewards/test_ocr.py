"""The OCR reward: its formula by hand, and the recogniser's calibration on signs."""

import numpy as np
import pytest
import torch

from errors import refused
from flow_opd.errors import RewardError
from flow_opd.miniature.prompts import prompts
from flow_opd.miniature.renderer import render
from flow_opd.miniature.scene import scene_for
from flow_opd.rewards.ocr import LineReader, OCRReward, edit_distance, word_accuracy
from flow_opd.types import Prompt


class Told:
    """A reader that has been told what is written."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def read(self, images):
        return [text for text, _ in zip(self.texts, images, strict=True)]


def sign(text):
    return Prompt(f'a sign that says "{text}"', "text", {"text": text})


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0),
        ("bed", "bed", 0),
        ("", "bed", 3),
        ("bed", "bd", 1),
        ("bed", "bad", 1),
        ("kitten", "sitting", 3),
        ("ab", "ba", 2),
    ],
)
def test_edit_distance(first, second, distance):
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@pytest.mark.parametrize(
    ("found", "target", "accuracy"),
    [
        ("bed", "bed", 1.0),
        ("xbedx", "bed", 1.0),  # contained
        ("bad", "bed", 2 / 3),
        ("", "bed", 0.0),
        ("qqqqqqqq", "bed", 0.0),  # the distance of 8 is capped at 3
        ("be", "bed", 2 / 3),
    ],
)
def test_word_accuracy(found, target, accuracy):
    assert word_accuracy(found, target) == pytest.approx(accuracy)


def test_score_lowers_strips_and_masks():
    other = Prompt("a photo of a circle", "composition", {"tag": "single_object"})
    reward = OCRReward(Told("B E D", "beds", "rod"))
    scores = reward.score(torch.zeros(4, 3, 8, 8), [sign("bed"), other, sign("bed"), sign("BED")])
    assert scores.valid.tolist() == [True, False, True, True]
    assert scores.values.tolist() == pytest.approx([1, 0, 1, 1 / 3])
    assert scores.parts["exact"].tolist() == [1, 0, 0, 0]
    assert scores.scale == (0.0, 1.0)


def test_a_batch_without_signs_is_not_judged():
    scores = OCRReward(Told()).score(torch.zeros(1, 3, 8, 8), [Prompt("p", "quality", {})])
    assert scores.valid.tolist() == [False]


@pytest.mark.parametrize("text", ["", " ", 7, None])
def test_unreadable_targets_raise(text):
    with pytest.raises(RewardError, match="no readable text"):
        OCRReward(Told("")).score(torch.zeros(1, 3, 8, 8), [Prompt("p", "text", {"text": text})])


def test_unequal_numbers_raise():
    with refused(RewardError, value=(2, 1)):
        OCRReward(Told("")).score(torch.zeros(2, 3, 8, 8), [sign("bed")])


@pytest.fixture(scope="module")
def reward():
    return OCRReward(LineReader())


@pytest.fixture(scope="module")
def signs():
    """120 clean signs of the test split, all backgrounds, boards and styles."""
    rng = np.random.default_rng(0)
    asked = prompts("text", "test", 120, 0)
    images = np.stack([render(scene_for(prompt.metadata, rng)) for prompt in asked])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, asked


@pytest.mark.slow
def test_calibration_on_clean_signs(reward, signs):
    images, asked = signs
    scores = reward.score(images, asked)
    assert scores.parts["exact"].mean() >= 0.97
    assert scores.values.mean() >= 0.98


@pytest.mark.slow
def test_wrong_words_score_low(reward, signs):
    images, asked = signs
    far = [sign("fad" if index % 2 else "gin") for index in range(len(asked))]
    assert reward.score(images, far).values.max() <= 1 / 3
    near = [sign(prompt.metadata["text"][:2] + "z") for prompt in asked]
    scores = reward.score(images, near)
    assert scores.parts["exact"].sum() == 0
    assert scores.values.mean() == pytest.approx(2 / 3, abs=0.02)


def test_blank_and_noise_score_nothing(reward):
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([torch.rand(8, 3, 32, 32, generator=generator), torch.full((2, 3, 32, 32), 0.7)])
    assert reward.score(images, [sign("bed")] * 10).values.max() == 0


def test_batches_change_nothing(signs):
    images, asked = signs
    pixels = [
        np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images[:7]
    ]
    together = LineReader(batch_size=7).read(pixels)
    assert (
        together == LineReader(batch_size=2).read(pixels) == [prompt.metadata["text"] for prompt in asked[:7]]
    )


def test_the_alphabet_restricts(signs):
    images, _ = signs
    pixels = [
        np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images[:10]
    ]
    assert set("".join(LineReader("xyz").read(pixels))) <= set("xyz")
    with refused(RewardError, value="\x01"):
        LineReader("a\u0001")
