"""The rewards of a training: each judges the prompts of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from flow_opd.config.base import Settings
from flow_opd.config.file.reader import from_values
from flow_opd.config.rewards import RewardSettings
from flow_opd.errors import ConfigError, RewardError
from flow_opd.protocols import Reward
from flow_opd.types import Prompt, RewardScores, RewardTable


@dataclass(frozen=True)
class TrainingReward:
    """A reward, its weight, and the tasks whose prompts it judges."""

    reward: Reward
    weight: float = 1.0
    tasks: tuple[str, ...] | None = None  # whose prompts it judges; None: all

    def rows(self, prompts: Sequence[Prompt]) -> list[int]:
        """Returns where the prompts stand that this reward judges."""
        return [row for row, one in enumerate(prompts) if self.tasks is None or one.task in self.tasks]


class FunctionReward:
    """A plain function as a reward."""

    scale = (float("-inf"), float("inf"))

    def __init__(self, function: Callable[[Tensor, Sequence[Prompt]], Tensor | Sequence[float]]) -> None:
        """Takes (images [B, 3, height, width] in [0, 1], B prompts) -> a score for each image, [B]."""
        self.function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        """Returns the function's scores; all of them count."""
        values = torch.as_tensor(self.function(images, prompts), dtype=torch.float32).detach().cpu()
        if values.shape != (len(prompts),) or not bool(torch.isfinite(values).all()):
            raise RewardError(
                f"reward {self.name!r} returned unusable scores",
                value=values.flatten().tolist()[:4],
                allowed=f"{len(prompts)} finite numbers, one for each image",
                fix="take means over all dimensions but the first",
            )
        return RewardScores(self.name, values, torch.ones(len(prompts), dtype=torch.bool), self.scale)


def with_scores(given: Reward | Callable[..., Any]) -> Reward:
    """Returns a reward as it is, or the reward that a plain function is."""
    return cast(Reward, given if hasattr(given, "score") else FunctionReward(given))


def as_reward(given: TrainingReward | Reward | Callable[..., Any]) -> TrainingReward:
    """Returns a reward, or a plain function, as one that judges every prompt with a weight of 1."""
    return given if isinstance(given, TrainingReward) else TrainingReward(with_scores(given))


def as_rewards(given: Sequence[TrainingReward | Reward | Callable[..., Any]]) -> list[TrainingReward]:
    """Returns rewards of different names.

    Raises:
        ConfigError: if there are none, or two have one name.
    """
    found = [as_reward(one) for one in given]
    names = [one.reward.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not found:
        raise ConfigError(
            "rewards of one name" if twice else "no rewards",
            value=twice,
            allowed="one reward or more, each of its own name",
            fix="give functions names of their own with def; add up the weights of equal rewards",
        )
    return found


class TrainingRewards:
    """All rewards of a run; one that fails or does not apply raises, and nothing is replaced by 0."""

    def __init__(self, rewards: Sequence[TrainingReward]) -> None:
        """Takes the rewards; every one's own scale stays."""
        self.rewards = list(rewards)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardTable:
        """Returns all scores of images [B, 3, height, width] in [0, 1]; a reward sees its own images alone.

        Raises:
            RewardError: if a reward fails, returns another number of scores or one that is not finite, or
                does not apply to a prompt of its tasks.
        """
        scores = {one.reward.name: _judge(one, images, prompts) for one in self.rewards}
        return RewardTable(scores, {one.reward.name: one.weight for one in self.rewards})


def _judge(one: TrainingReward, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
    """Returns a reward's scores, [B], 0 and not valid for the prompts of other tasks."""
    reward, rows = one.reward, one.rows(prompts)
    values, valid = torch.zeros(len(prompts)), torch.zeros(len(prompts), dtype=torch.bool)
    if rows:
        judged = reward.score(images[rows], [prompts[row] for row in rows])
        _check(judged, reward, [prompts[row] for row in rows])
        values[rows], valid[rows] = judged.values.to(values), True
    return RewardScores(reward.name, values, valid, reward.scale)


def check_numbers(judged: RewardScores, reward: Reward, prompts: Sequence[Prompt]) -> None:
    """Passes if there is a score for each image, [B], finite where it counts.

    Raises:
        RewardError: if not.
    """
    if judged.values.shape != (len(prompts),) or not bool(torch.isfinite(judged.values[judged.valid]).all()):
        raise RewardError(
            f"reward {reward.name!r} returned unusable scores",
            value=judged.values.flatten().tolist()[:4],
            allowed=f"{len(prompts)} finite numbers within {reward.scale}",
            fix="check the reward's model and its prompts' metadata",
        )


def _check(judged: RewardScores, reward: Reward, prompts: Sequence[Prompt]) -> None:
    check_numbers(judged, reward, prompts)
    if not bool(judged.valid.all()):
        stranger = prompts[int(torch.nonzero(~judged.valid)[0])]
        raise RewardError(
            f"the reward {reward.name!r} does not apply to a prompt of the task {stranger.task!r}",
            value=stranger.text,
            allowed=f"prompts with the metadata that {reward.name} needs",
            fix="name the tasks that the reward judges under its 'tasks', or correct the prompt",
        )


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
