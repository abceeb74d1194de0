"""Rewards from their specifications."""

from __future__ import annotations

from flow_opd.config.locations import locate, locate_model
from flow_opd.config.rewards import DeQASettings, GenEvalSettings, OCRSettings, PickScoreSettings, RewardSpec
from flow_opd.protocols import Reward
from flow_opd.rewards.deqa import DeQAReward
from flow_opd.rewards.detectors import PaletteDetector
from flow_opd.rewards.geneval import GenEvalReward
from flow_opd.rewards.ocr import LineReader, OCRReward
from flow_opd.rewards.page_reader import PageReader
from flow_opd.rewards.pickscore import PickScoreReward


def build_reward(spec: RewardSpec) -> Reward:
    """Returns the reward that a specification describes."""
    if isinstance(spec, GenEvalSettings):
        return GenEvalReward(PaletteDetector(locate(spec.palette, key="palette")))
    if isinstance(spec, OCRSettings):
        if spec.reader == "page":
            return OCRReward(PageReader())
        return OCRReward(LineReader(alphabet=spec.alphabet, width=spec.width, batch_size=spec.batch_size))
    if isinstance(spec, DeQASettings):
        return DeQAReward(locate(spec.path, key="path"))
    assert isinstance(spec, PickScoreSettings), spec
    return PickScoreReward(locate_model(spec.path, key="path"))
