"""The preference reward: the shipped model's calibration, preprocessing by hand, and broken folders."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from errors import refused
from flow_opd.config.locations import asset_folder
from flow_opd.errors import RewardError
from flow_opd.miniature.judged import DIFFERENCES, judged_pictures
from flow_opd.miniature.preference import CLEAR, appeal
from flow_opd.rewards.clip import Preprocessing
from flow_opd.rewards.pickscore import PickScoreReward
from flow_opd.types import Prompt

MODEL = asset_folder() / "rewards" / "pickscore"
VAE = asset_folder() / "base" / "vae"


@pytest.fixture(scope="module")
def reward():
    return PickScoreReward(MODEL)


@pytest.fixture(scope="module")
def held_out():
    """300 captions of the test split with four pictures each."""
    return judged_pictures(41, "test", 300)


def score(reward, judged, pictures):
    count, each = pictures.shape[:2]
    images = torch.from_numpy(pictures.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2) / 255
    asked = [Prompt(str(text), "preference") for text in judged.captions[:count] for _ in range(each)]
    return reward.score(images, asked).values.numpy().reshape(count, each)


def accuracy(scores, truth):
    """The share of clear pairs that the scores order as the truth does, pair by pair."""
    right = total = 0
    for row, best in zip(scores, truth, strict=True):
        for first in range(len(row)):
            for second in range(first):
                if abs(best[first] - best[second]) >= CLEAR:
                    right += (row[first] > row[second]) == (best[first] > best[second])
                    total += 1
    assert total > 100
    return right / total


@pytest.mark.slow
def test_pair_accuracy_on_held_out_pairs(reward, held_out):
    scores, truth = score(reward, held_out, held_out.pictures), appeal(held_out)
    assert accuracy(scores, truth) >= 0.9
    for index, name in enumerate(DIFFERENCES):
        rows = held_out.differs == index
        assert accuracy(scores[rows], truth[rows]) >= 0.8, name


@pytest.mark.slow
def test_pair_accuracy_survives_the_autoencoder(reward):
    vae = AutoencoderKL.from_pretrained(VAE).float()
    judged = judged_pictures(43, "test", 200, vae=vae, rebuilt=200)
    assert accuracy(score(reward, judged, judged.rebuilt), appeal(judged)) >= 0.9


def test_scores_live_where_pickscores_do(reward, held_out):
    scores = score(reward, held_out, held_out.pictures)
    assert 20 <= scores.mean() <= 22
    assert 0.8 <= scores.std() <= 2
    assert scores.min() > 10
    assert scores.max() < 30


@pytest.mark.slow
def test_the_caption_matters(reward, held_out):
    right = (held_out.wrong == 0) & (held_out.strength == 0)
    own = score(reward, held_out, held_out.pictures)
    shuffled = np.roll(held_out.pictures, 1, axis=0)
    fits = np.roll(right, 1, axis=0)
    assert own[right].mean() > score(reward, held_out, shuffled)[fits].mean() + 0.5


def test_neighbours_and_repetition_change_nothing(reward, held_out):
    images = torch.from_numpy(held_out.pictures[:5, 0]).permute(0, 3, 1, 2) / 255
    asked = [Prompt(str(text), "quality") for text in held_out.captions[:5]]
    together = reward.score(images, asked)
    alone = [reward.score(images[index : index + 1], asked[index : index + 1]) for index in range(5)]
    assert torch.allclose(together.values, torch.cat([one.values for one in alone]), atol=1e-3)
    split = PickScoreReward(MODEL, batch_size=2).score(images, asked).values
    assert torch.allclose(together.values, split, atol=1e-3)
    assert torch.equal(together.values, reward.score(images, asked).values)
    assert together.valid.all()
    assert together.scale == (0.0, 100.0)
    assert together.values.dtype == torch.float32


def test_strange_input(reward):
    flat = torch.stack([torch.full((3, 32, 32), level) for level in (0.0, 0.5, 1.0)])
    asked = [Prompt("a blue square at night", "quality"), Prompt("", "quality"), Prompt("red " * 99, "text")]
    values = reward.score(flat, asked).values
    assert torch.isfinite(values).all()
    assert ((values > 0) & (values < 100)).all()
    assert reward.score(torch.rand(1, 3, 64, 48), asked[:1]).values.shape == (1,)
    assert reward.score(torch.zeros(0, 3, 32, 32), []).values.shape == (0,)
    with refused(RewardError, value=(3, 1)):
        reward.score(flat, asked[:1])
    with refused(RewardError, value="NaN or infinity"):
        reward.score(flat * torch.nan, asked)


def test_preprocessing_by_hand():
    config = {
        "size": 4,
        "crop_size": 2,
        "resample": 0,
        "image_mean": [0.5, 0.25, 0],
        "image_std": [0.5, 1, 2],
    }
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)
    pixels = Preprocessing.of(config)(picture)
    middle = picture[0, 1:3, 2:4] / 255
    expected = (middle - [0.5, 0.25, 0]) / [0.5, 1, 2]
    assert np.allclose(pixels[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)
    spelt = {**config, "size": {"shortest_edge": 4}, "crop_size": {"height": 2, "width": 2}}
    assert Preprocessing.of(spelt) == Preprocessing.of(config)


def test_preprocessing_resizes_like_pillow():
    config = {"size": 16, "crop_size": 16, "resample": 3, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(picture[0]).resize((16, 16), Image.Resampling.BICUBIC))
    pixels = Preprocessing.of(config)(picture)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(np.rint(pixels * 255).astype(np.uint8), expected)


@pytest.mark.parametrize(("width", "height"), [(55, 55), (71, 100), (153, 110)])
def test_the_shorter_side_is_never_a_pixel_short(width, height):
    """55 * (224 / 55) is below 224 in floating point; cut down to 223, a crop would have a black edge."""
    config = {"size": 224, "crop_size": 224, "resample": 2, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    white = np.full((1, height, width, 3), 255, np.uint8)
    assert Preprocessing.of(config)(white).min() == 1


def broken(path, what):
    shutil.copytree(MODEL, path)
    if what == "no folder":
        shutil.rmtree(path)
    elif what == "truncated":
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif what in ("deeper", "wider"):
        config = json.loads((path / "config.json").read_text())
        key = "num_hidden_layers" if what == "deeper" else "intermediate_size"
        config["vision_config"][key] += 1
        (path / "config.json").write_text(json.dumps(config))
    else:
        (path / what).unlink()
    return path


@pytest.mark.parametrize(
    "what",
    [
        "no folder",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "truncated",
        "deeper",
        "wider",
    ],
)
def test_broken_folders_raise(tmp_path, what):
    told = "no local path, and cannot be a hub id" if what == "no folder" else "no usable preference model"
    with pytest.raises(RewardError, match=told) as caught:
        PickScoreReward(broken(tmp_path / "pickscore", what))
    assert "To fix" in str(caught.value)
