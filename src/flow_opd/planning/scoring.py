"""What rewards take of a training: their networks as shapes on the card, and seconds of the processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flow_opd.config.rewards import (
    DeQASettings,
    GenEvalSettings,
    OCRSettings,
    PickScoreSettings,
    RewardSettings,
)
from flow_opd.planning.architectures import Network, read_reward_config
from flow_opd.planning.memory import module_size
from flow_opd.planning.meter import Meter
from flow_opd.planning.shapes import build_network
from flow_opd.rewards.deqa import QualityNet
from flow_opd.rewards.segmentation import Input

# Seconds of one processor core for an image, by `python benchmarks/reward_seconds.py`.
CPU_SECONDS = {"page": 0.26, "line": 0.009, "palette": 0.0007}
PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Scoring:
    """What it takes to score the images of a training; all rewards together."""

    parameters: int = 0
    bytes: int = 0  # of the networks, which stay on the card in float32
    flops: float = 0.0  # of one image, in float32
    peak: int = 0  # temporary bytes while a micro-batch is scored, at the peak
    cpu_seconds: float = 0.0  # of one image on one core, while the card waits
    notes: tuple[str, ...] = ()

    def __add__(self, other: Scoring) -> Scoring:
        """Returns both, one after the other."""
        return Scoring(
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.flops + other.flops,
            max(self.peak, other.peak),
            self.cpu_seconds + other.cpu_seconds,
            (*self.notes, *other.notes),
        )


def read_scoring(
    specs: Sequence[RewardSettings],
    *,
    rows: int,
    image_size: int,
    task_shares: Mapping[str, float] | None = None,
) -> Scoring:
    """Returns what the rewards take for images that come in micro-batches, in the mean over all images.

    Args:
        specs: the rewards.
        rows: images of a micro-batch.
        image_size: height and width in pixels.
        task_shares: of the images; None = equal ones of the tasks that the rewards name.

    Raises:
        ConfigError: if the config files of a reward model cannot be had.
    """
    tasks = dict.fromkeys(task for spec in specs for task in spec.tasks or ())
    shares = task_shares or dict.fromkeys(tasks, 1.0)
    total = Scoring()
    for spec in specs:
        asked = (
            1.0
            if spec.tasks is None
            else sum(shares.get(task, 0.0) for task in spec.tasks) / sum(shares.values())
        )
        one = _scoring(spec, rows, image_size)
        total += replace(one, flops=asked * one.flops, cpu_seconds=asked * one.cpu_seconds)
    return total


def _scoring(spec: RewardSettings, rows: int, image_size: int) -> Scoring:
    if isinstance(spec, PickScoreSettings):
        return _preference(spec, rows)
    if isinstance(spec, DeQASettings):
        return _quality(spec, rows, image_size)
    if isinstance(spec, OCRSettings):
        return Scoring(cpu_seconds=CPU_SECONDS[spec.reader])
    if not isinstance(spec, GenEvalSettings):
        return Scoring(notes=(f"reward {spec.name}: what it takes is not known, and counted as nothing",))
    if spec.palette is not None:
        return Scoring(cpu_seconds=CPU_SECONDS["palette"])
    return _detector(spec, rows, image_size) + _colors(spec)


def _read(network: nn.Module, forward: Callable[[], object], images: int) -> Scoring:
    """Returns the measurement of one forward pass over `images` images; the network is on the meta device."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        meter = Meter([*network.parameters(), *network.buffers()])
        with meter, torch.no_grad():
            forward()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Scoring(parameters, module_size(network), meter.flops / images, meter.peak)


def _preference(spec: PickScoreSettings, rows: int) -> Scoring:
    """Returns what PickScore takes: each image with a text of the largest length."""
    config = read_reward_config(spec.path, key="path")
    network, images = build_network(Network("CLIPModel", config)), min(rows, spec.batch_size)
    side, length = config["vision_config"]["image_size"], config["text_config"]["max_position_embeddings"]

    def forward() -> object:
        texts = torch.zeros(images, length, dtype=torch.long)
        return network(
            pixel_values=_pictures(images, side, side), input_ids=texts, attention_mask=torch.ones_like(texts)
        )

    return _read(network, forward, images)


def _detector(spec: GenEvalSettings, rows: int, image_size: int) -> Scoring:
    """Returns what GenEval's Mask2Former takes."""
    assert spec.detector is not None, spec
    config = read_reward_config(spec.detector, key="detector")
    preprocessor = read_reward_config(spec.detector, key="detector", name=PREPROCESSOR)
    network = build_network(Network("Mask2FormerForUniversalSegmentation", config))
    images = min(rows, spec.batch_size)
    height, width = Input.of(preprocessor, spec.side).sides((image_size, image_size))
    return _read(network, lambda: network(pixel_values=_pictures(images, height, width)), images)


def _colors(spec: GenEvalSettings) -> Scoring:
    """Returns what GenEval's CLIP takes for one object; its texts are embedded once for all."""
    assert spec.colors is not None, spec
    config = read_reward_config(spec.colors, key="colors")
    network: Any = build_network(Network("CLIPModel", config))
    side = config["vision_config"]["image_size"]
    reading = _read(network, lambda: network.get_image_features(pixel_values=_pictures(1, side, side)), 1)
    return reading + Scoring(notes=("GenEval: one object of each image taken to be asked for its colour",))


def _quality(spec: DeQASettings, rows: int, image_size: int) -> Scoring:
    """Returns what the quality network takes."""
    config = read_reward_config(spec.path, key="path")
    with torch.device("meta"):
        network = QualityNet(tuple(config["widths"]), config["hidden"])
    return _read(network, lambda: network(_pictures(rows, image_size, image_size)), rows)


def _pictures(count: int, height: int, width: int) -> Tensor:
    return torch.empty(count, 3, height, width)
