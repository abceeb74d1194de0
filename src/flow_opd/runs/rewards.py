"""Rewards from their specifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flow_opd.config.base import Settings
from flow_opd.config.file.reader import from_values
from flow_opd.config.locations import locate, locate_model
from flow_opd.config.rewards import DeQASettings, GenEvalSettings, OCRSettings, PickScoreSettings, RewardSpec
from flow_opd.protocols import Reward
from flow_opd.rewards.colors import ColorClassifier
from flow_opd.rewards.deqa import DeQAReward
from flow_opd.rewards.detectors import PaletteDetector
from flow_opd.rewards.geneval import GenEvalReward
from flow_opd.rewards.ocr import LineReader, OCRReward, PageReader
from flow_opd.rewards.pickscore import PickScoreReward
from flow_opd.rewards.segmentation import Mask2FormerDetector
from flow_opd.rewards.table import TrainingReward


class RewardsSettings(Settings):
    """Rewards alone."""

    rewards: tuple[RewardSpec, ...]
    """What judges."""


def build_rewards(specs: Sequence[RewardSpec], *, device: torch.device | str = "cpu") -> list[TrainingReward]:
    """Returns the rewards of a training, each for the prompts of its tasks."""
    return [TrainingReward(build_reward(spec, device=device), spec.weight, spec.tasks) for spec in specs]


def load_reward(
    name: str, settings: Mapping[str, Any] | None = None, *, device: torch.device | str = "cpu"
) -> Reward:
    """Returns a reward of this package.

    Args:
        name: 'geneval', 'ocr', 'deqa' or 'pickscore'.
        settings: what stands beside its name in a configuration, such as {"path": "asset:rewards/deqa"}.
        device: where its networks compute.

    Raises:
        ConfigError: if there is no such reward, or a setting does not fit it.
    """
    spec = from_values({"rewards": [{"name": name, **(settings or {})}]}, RewardsSettings).rewards[0]
    return build_reward(spec, device=device)


def build_reward(spec: RewardSpec, *, device: torch.device | str = "cpu") -> Reward:
    """Returns the reward that a specification describes.

    Args:
        spec: which reward, and its settings.
        device: where networks compute; OCR and the palette run on the CPU.
    """
    if isinstance(spec, GenEvalSettings):
        return _build_geneval(spec, device)
    if isinstance(spec, OCRSettings):
        if spec.reader == "page":
            return OCRReward(PageReader())
        return OCRReward(LineReader(alphabet=spec.alphabet, width=spec.width, batch_size=spec.batch_size))
    if isinstance(spec, DeQASettings):
        return DeQAReward(locate(spec.path, key="path"), device=device)
    assert isinstance(spec, PickScoreSettings), spec
    return PickScoreReward(locate_model(spec.path, key="path"), device=device, batch_size=spec.batch_size)


def _build_geneval(spec: GenEvalSettings, device: torch.device | str) -> Reward:
    clamped = spec.training_score == "continuous"
    if spec.palette is not None:
        return GenEvalReward(PaletteDetector(locate(spec.palette, key="palette")), clamped=clamped)
    assert spec.detector is not None, spec
    assert spec.colors is not None, spec
    detector = Mask2FormerDetector(
        locate_model(spec.detector, key="detector"),
        ColorClassifier(locate_model(spec.colors, key="colors"), device=device),
        floor=min(spec.threshold, spec.counting_threshold),
        side=spec.side,
        device=device,
        batch_size=spec.batch_size,
    )
    return GenEvalReward(
        detector, threshold=spec.threshold, counting_threshold=spec.counting_threshold, clamped=clamped
    )
