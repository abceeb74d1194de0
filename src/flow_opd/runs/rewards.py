"""Rewards from their names and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flow_opd.config.base import Settings
from flow_opd.config.file.reader import from_values
from flow_opd.config.rewards import RewardSettings
from flow_opd.protocols import Reward
from flow_opd.rewards.table import TrainingReward


class _RewardAlone(Settings):
    """One reward."""

    reward: RewardSettings
    """What judges."""


def build_rewards(
    settings: Sequence[RewardSettings], *, device: torch.device | str = "cpu"
) -> list[TrainingReward]:
    """Returns the rewards of a training, each for the prompts of its tasks."""
    return [TrainingReward(each.build(device), each.weight, each.tasks) for each in settings]


def load_reward(
    name: str, settings: Mapping[str, Any] | None = None, *, device: torch.device | str = "cpu"
) -> Reward:
    """Returns a reward by its name.

    Args:
        name: 'geneval', 'ocr', 'deqa', 'pickscore', that of an installed package, or 'package.module:Name'.
        settings: what stands beside its name in a configuration, such as {"path": "asset:rewards/deqa"}.
        device: where its networks compute.

    Raises:
        ConfigError: if there is no such reward, or a setting does not fit it.
    """
    values = {"reward": {"name": name, **(settings or {})}}
    return from_values(values, _RewardAlone, source="load_reward").reward.build(device)
