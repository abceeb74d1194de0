"""The quality reward: DeQA's formula by hand, the shipped model's calibration, and broken folders."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from scipy.stats import spearmanr

from errors import refused
from flow_opd.config.locations import asset_folder
from flow_opd.errors import RewardError
from flow_opd.miniature.autoencoder import as_pixels
from flow_opd.miniature.captions import TASKS
from flow_opd.miniature.degradations import KINDS, degrade
from flow_opd.miniature.prompts import prompts
from flow_opd.miniature.renderer import render
from flow_opd.miniature.scene import scene_for
from flow_opd.protocols import Reward
from flow_opd.rewards.deqa import DeQAReward, QualityNet, expected_level
from flow_opd.types import Prompt

MODEL = asset_folder() / "rewards" / "deqa"
VAE = asset_folder() / "base" / "vae"


def as_images(pictures):
    return torch.from_numpy(np.asarray(pictures)).permute(0, 3, 1, 2).float() / 255


def asked(count):
    return [Prompt("a photo of a circle", "quality")] * count


def test_expected_level_by_hand():
    # exp(ln 2) = 2 against four ones: weights 1/6, 1/6, 1/6, 1/6, 2/6.
    one_higher = torch.tensor([0.0, 0.0, 0.0, 0.0, np.log(2)])
    certain = torch.tensor([0.0, 1000.0, 0.0, 0.0, 0.0])
    logits = torch.stack([torch.zeros(5), one_higher, certain, certain.flip(0) + 7])
    assert expected_level(logits).tolist() == pytest.approx([3, (1 + 2 + 3 + 4 + 10) / 6, 2, 4])
    assert expected_level(logits.half()).dtype == torch.float32


@pytest.fixture(scope="module")
def reward() -> Reward:
    return DeQAReward(MODEL)


@pytest.fixture(scope="module")
def held_out():
    """500 renders of test prompts of all tasks: clean, or one of the four degradations, 100 of each."""
    rng = np.random.default_rng(41)
    scenes = [prompt for task in TASKS for prompt in prompts(task, "test", 125, 41)]
    kinds = [None, *KINDS]
    pictures, strengths = [], []
    for index, prompt in enumerate(scenes):
        kind, strength = kinds[index % 5], float(rng.uniform(0.05, 1))
        picture = render(scene_for(prompt.metadata, rng))
        pictures.append(picture if kind is None else degrade(picture, kind, strength, rng))
        strengths.append(0.0 if kind is None else strength)
    return np.stack(pictures), np.asarray(strengths), np.arange(500) % 5


def check_calibration(reward, images, strengths, kind, within):
    values = reward.score(images, asked(len(images))).values.numpy()
    assert values.min() >= 1
    assert values.max() <= 5
    assert spearmanr(values, -strengths).statistic >= 0.9
    for one in range(1, 5):
        assert spearmanr(values[kind == one], -strengths[kind == one]).statistic >= within
    assert values[kind == 0].mean() >= 4.5
    assert values[strengths > 0.9].mean() <= 2


def test_calibration_on_held_out_renders(reward, held_out):
    pictures, strengths, kind = held_out
    check_calibration(reward, as_images(pictures), strengths, kind, within=0.8)


@pytest.mark.slow
def test_calibration_survives_the_autoencoder(reward, held_out):
    pictures, strengths, kind = held_out
    vae = AutoencoderKL.from_pretrained(VAE).float()
    with torch.no_grad():
        rebuilt = vae.decode(vae.encode(as_pixels(pictures)).latent_dist.mean).sample / 2 + 0.5
    # The VAE wipes out part of the compression.
    check_calibration(reward, rebuilt.clamp(0, 1), strengths, kind, within=0.7)


def test_it_is_no_detector_of_the_task(reward, held_out):
    pictures, _, kind = held_out
    clean = reward.score(as_images(pictures[kind == 0]), asked(100)).values
    assert clean.view(4, 25).mean(1).min() >= 4.3


def test_neighbours_and_repetition_change_nothing(reward, held_out):
    images = as_images(held_out[0][:7])
    together = reward.score(images, asked(7))
    alone = torch.cat([reward.score(image[None], asked(1)).values for image in images])
    assert torch.allclose(together.values, alone, atol=1e-5)
    split = DeQAReward(MODEL, batch_size=3).score(images, asked(7)).values
    assert torch.allclose(together.values, split, atol=1e-5)
    assert torch.equal(together.values, reward.score(images, asked(7)).values)
    assert together.valid.all()
    assert together.scale == (1.0, 5.0)
    assert together.values.dtype == torch.float32


def test_strange_images(reward):
    flat = torch.stack([torch.full((3, 32, 32), level) for level in (0.0, 0.5, 1.0)])
    noise = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    values = reward.score(torch.cat([flat, noise]), asked(6)).values
    assert values.min() >= 1
    assert values.max() <= 2.5  # nothing to see is not good quality
    assert reward.score(torch.rand(1, 3, 64, 48), asked(1)).values.shape == (1,)
    assert reward.score(torch.zeros(0, 3, 32, 32), []).values.shape == (0,)


def test_unusable_input_raises(reward):
    with refused(RewardError, value=(2, 1)):
        reward.score(torch.zeros(2, 3, 32, 32), asked(1))
    with refused(RewardError, value="NaN or infinity"):
        reward.score(torch.full((1, 3, 32, 32), torch.nan), asked(1))


def broken(path, what):
    shutil.copytree(MODEL, path)
    config = json.loads((path / "config.json").read_text())
    if what == "no config":
        (path / "config.json").unlink()
    elif what == "not json":
        (path / "config.json").write_text("{")
    elif what == "lacking":
        (path / "config.json").write_text(json.dumps({"levels": 5}))
    elif what == "other widths":
        (path / "config.json").write_text(json.dumps({**config, "hidden": config["hidden"] + 1}))
    elif what == "three levels":
        (path / "config.json").write_text(json.dumps({**config, "levels": 3}))
    elif what == "no weights":
        (path / "model.safetensors").unlink()
    elif what == "truncated":
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    else:
        shutil.rmtree(path)
    return path


@pytest.mark.parametrize(
    "what",
    [
        "no config",
        "not json",
        "lacking",
        "other widths",
        "three levels",
        "no weights",
        "truncated",
        "no folder",
    ],
)
def test_broken_folders_raise(tmp_path, what):
    with refused(RewardError, value=str(tmp_path / "deqa")) as caught:
        DeQAReward(broken(tmp_path / "deqa", what))
    assert "To fix" in str(caught.value)


def test_a_saved_network_comes_back(tmp_path):
    torch.manual_seed(0)
    net = QualityNet((4, 5, 6), 7)
    net.save(tmp_path / "net", dtype=torch.float32)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(QualityNet.from_folder(tmp_path / "net")(pixels), net(pixels))
