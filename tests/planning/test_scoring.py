"""What a plan says of rewards, against real ones: FLOPs, bytes, hours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from errors import refused
from flow_opd.config.file.reader import from_values
from flow_opd.config.locations import asset_folder
from flow_opd.config.options import PlanSettings
from flow_opd.config.rewards import DeQASettings, GenEvalSettings, OCRSettings, PickScoreSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import ConfigError
from flow_opd.planning.architectures import Network, read_reward_config
from flow_opd.planning.meter import CPU_ATTENTION
from flow_opd.planning.plan import Plan
from flow_opd.planning.scoring import CPU_SECONDS, read_scoring
from flow_opd.planning.shapes import build_network
from flow_opd.rewards.colors import ColorClassifier
from flow_opd.stages.plan import plan_training
from flow_opd.types import Prompt
from tiny_rewards import LABELS, save_mask2former

SIDE = 32
IMAGES = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
LONG = "red " * 99  # cut to the most that a CLIP reads
CLIP = "asset:rewards/pickscore"
PICKSCORE = PickScoreSettings(name="pickscore", path=CLIP, batch_size=3)
DEQA = DeQASettings(name="deqa", path="asset:rewards/deqa")


def counted(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False, custom_mapping=dict(CPU_ATTENTION)) as counter:
        work()
    return counter.get_total_flops()


def held(network: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in [*network.parameters(), *network.buffers()])


def test_pickscore_is_planned_as_it_is() -> None:
    reward = PICKSCORE.build()
    planned = read_scoring([PICKSCORE], rows=6, image_size=SIDE)
    real = counted(lambda: reward.score(IMAGES, [Prompt(LONG, "preference")] * 6))
    assert planned.flops * 6 == pytest.approx(real, rel=1e-6)
    assert planned.bytes == held(reward.clip.model)
    assert planned.parameters == sum(one.numel() for one in reward.clip.model.parameters())
    assert planned.cpu_seconds == 0


def test_the_quality_net_is_planned_as_it_is() -> None:
    reward = DEQA.build()
    planned = read_scoring([DEQA], rows=6, image_size=SIDE)
    assert planned.flops * 6 == counted(lambda: reward.score(IMAGES, [Prompt("", "quality")] * 6))
    assert planned.bytes == held(reward.net)
    smaller = read_scoring([DEQA], rows=3, image_size=SIDE)
    assert planned.peak == pytest.approx(2 * smaller.peak, rel=0.02)


@pytest.mark.parametrize("side", [None, 96])
@pytest.mark.slow
def test_geneval_is_planned_as_it_is(tmp_path: Path, side: int | None) -> None:
    folder = str(save_mask2former(tmp_path / "mask2former"))
    spec = GenEvalSettings(name="geneval", detector=folder, colors=CLIP, side=side, batch_size=2)
    planned = read_scoring([spec], rows=6, image_size=SIDE)
    reward, colors = spec.build(), ColorClassifier(asset_folder() / "rewards" / "pickscore")
    needs = {"tag": "counting", "include": [{"class": LABELS[0], "count": 1}]}
    detection = counted(lambda: reward.score(IMAGES, [Prompt("", "composition", needs)] * 6))
    color = counted(lambda: colors._images([np.zeros((8, 8, 3), np.uint8)]))
    assert planned.flops == pytest.approx(detection / 6 + color, rel=1e-6)
    assert planned.bytes == held(reward.detector.model) + held(colors.clip.model)
    assert len(planned.notes) == 1


def test_rewards_add_up_and_some_of_them_need_the_processor() -> None:
    ocr = OCRSettings(name="ocr", reader="page")
    parts = [read_scoring([one], rows=4, image_size=SIDE) for one in (PICKSCORE, DEQA, ocr)]
    whole = read_scoring([PICKSCORE, DEQA, ocr], rows=4, image_size=SIDE)
    assert whole.flops == sum(one.flops for one in parts)
    assert whole.bytes == sum(one.bytes for one in parts)
    assert whole.peak == max(one.peak for one in parts)
    assert whole.cpu_seconds == CPU_SECONDS["page"]
    assert (parts[2].flops, parts[2].bytes) == (0, 0)


def test_a_reward_scores_the_images_of_its_tasks() -> None:
    pick = PICKSCORE.model_copy(update={"tasks": ("preference",)})
    ocr = OCRSettings(name="ocr", reader="page", tasks=("text", "signs"))
    alone = read_scoring([PICKSCORE], rows=4, image_size=SIDE)
    equal = read_scoring([pick, ocr], rows=4, image_size=SIDE)
    assert equal.flops == pytest.approx(alone.flops / 3)
    assert equal.cpu_seconds == pytest.approx(CPU_SECONDS["page"] * 2 / 3)
    assert (equal.bytes, equal.peak) == (alone.bytes, alone.peak)
    shares = {"preference": 6.0, "text": 1.0, "signs": 1.0}
    dealt = read_scoring([pick, ocr], rows=4, image_size=SIDE, task_shares=shares)
    assert dealt.cpu_seconds == pytest.approx(CPU_SECONDS["page"] / 4)


@pytest.mark.parametrize(
    ("path", "kind", "millions"),
    [
        ("yuvalkirstain/PickScore_v1", "CLIPModel", 986.11),  # CLIP ViT-H/14
        ("openai/clip-vit-large-patch14", "CLIPModel", 427.62),
        ("facebook/mask2former-swin-small-coco-instance", "Mask2FormerForUniversalSegmentation", 68.74),
    ],
)
def test_sizes_are_the_published_ones(path: str, kind: str, millions: float) -> None:
    network = build_network(Network(kind, read_reward_config(path, key="path")))
    assert sum(one.numel() for one in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def teacher(disk: Any, **changes: Any) -> Plan:
    return plan_training(from_values(disk.grpo(**changes), TeacherSettings), PlanSettings())


@pytest.mark.slow
def test_a_teachers_plan_counts_its_rewards(disk) -> None:
    network, processor = (
        teacher(disk, rewards=[reward]) for reward in ({"name": "pickscore", "path": CLIP}, {"name": "ocr"})
    )
    alone = read_scoring([PickScoreSettings(name="pickscore", path=CLIP)], rows=4, image_size=8)
    assert network.flops["rewards"] == 8 * alone.flops  # 8 images an update
    assert network.parameters.reward_models == alone.parameters
    assert network.memory[False].fixed["reward_models"] == alone.bytes
    assert network.cpu_seconds == 0
    assert (processor.flops["rewards"], processor.cpu_seconds) == (0, pytest.approx(8 * CPU_SECONDS["line"]))
    seconds = [3600 * plan.verdicts[0].gpu_hours / plan.updates for plan in (network, processor)]
    rest = sum(value for part, value in network.flops.items() if part not in ("rewards", "decode"))
    decode, rate = network.flops["decode"], 0.35e12
    base = (rest / 312 + decode / 156) / rate
    assert seconds[0] == pytest.approx(base + network.flops["rewards"] / (19.5 * rate))
    assert seconds[1] == pytest.approx(base + 8 * CPU_SECONDS["line"])


@pytest.mark.slow
def test_scoring_may_need_more_than_an_update(disk) -> None:
    """The quality net sees 8 x 8 pixels in full width, and so needs more than an update of the tiny base."""
    small, large = (
        teacher(disk, rewards=rewards)
        for rewards in ([{"name": "ocr"}], [{"name": "deqa", "path": "asset:rewards/deqa"}])
    )
    peak = read_scoring([DEQA], rows=4, image_size=8).peak
    for on in (False, True):
        before, after = small.memory[on], large.memory[on]
        assert after.kept == before.kept
        assert after.kept + after.working == max(before.kept + before.working, peak)


@pytest.mark.slow
def test_the_vae_is_counted_in_float32_on_any_base(disk) -> None:
    exact, half = (
        teacher(disk, base={"path": str(disk.base), "max_sequence_length": 0, "dtype": dtype})
        for dtype in ("float32", "bfloat16")
    )
    assert half.memory[False].fixed["vae"] == exact.memory[False].fixed["vae"] > 0
    assert half.memory[False].fixed["base"] == exact.memory[False].fixed["base"] // 2


def test_a_model_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(ConfigError, value="nobody/has-this", names=["'path'", "config.json"]):
        read_reward_config("nobody/has-this", key="path")
    tmp_path.joinpath("empty").mkdir()
    with refused(ConfigError, names=["config.json"]):
        read_reward_config(str(tmp_path / "empty"), key="path")
