"""The rewards of a training: tasks, weights, and rewards that break their promise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from errors import refused
from flow_opd.errors import RewardError
from flow_opd.rewards.table import TrainingReward, TrainingRewards
from flow_opd.types import Prompt, RewardScores, RewardTable

IMAGES = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 4, 4)
PROMPTS = [
    Prompt("one", "a", {"value": 0.25}),
    Prompt("two", "b", {"value": 0.5}),
    Prompt("three", "a", {"value": 0.75}),
]


class Stated:
    """A real, if simple, reward: the number that the prompt's metadata state; no number, not judged."""

    scale = (0.0, 1.0)

    def __init__(self, name: str, factor: float = 1.0) -> None:
        self.name = name
        self.factor = factor

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        values = torch.tensor([self.factor * prompt.metadata.get("value", 0.0) for prompt in prompts])
        valid = torch.tensor(["value" in prompt.metadata for prompt in prompts])
        return RewardScores(self.name, values, valid, self.scale)


def scored(*rewards: TrainingReward, prompts: list[Prompt] = PROMPTS) -> RewardTable:
    return TrainingRewards(rewards).score(IMAGES[: len(prompts)], prompts)


def test_every_reward_judges_the_prompts_of_its_tasks() -> None:
    table = scored(
        TrainingReward(Stated("plain"), 2.0, ("a",)),
        TrainingReward(Stated("double", 2.0), 0.5),
        TrainingReward(Stated("idle"), 1.0, ("c",)),
    )
    assert table.weights == {"plain": 2.0, "double": 0.5, "idle": 1.0}
    assert {name: one.valid.tolist() for name, one in table.scores.items()} == {
        "plain": [True, False, True],
        "double": [True, True, True],
        "idle": [False, False, False],
    }
    assert table.scores["plain"].values.tolist() == [0.25, 0.0, 0.75]
    assert table.scores["double"].values.tolist() == [0.5, 1.0, 1.5]


def test_a_reward_sees_the_images_of_its_prompts() -> None:
    seen = []

    class Watching(Stated):
        def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
            seen.append((images[:, 0, 0, 0].tolist(), [prompt.text for prompt in prompts]))
            return super().score(images, prompts)

    scored(TrainingReward(Watching("plain"), 1.0, ("a",)))
    assert seen == [([0.0, 2.0], ["one", "three"])]


def test_training_refuses_a_prompt_that_cannot_be_judged() -> None:
    silent = [*PROMPTS[:2], Prompt("four", "a")]
    with refused(RewardError, value="four", names=["plain", "a"]):
        scored(TrainingReward(Stated("plain")), prompts=silent)
    scored(TrainingReward(Stated("plain"), 1.0, ("b",)), prompts=silent)


def test_a_number_that_is_not_finite_is_an_error_not_a_zero() -> None:
    with refused(RewardError, value=[float("nan")] * 3, names=["'broken'"]):
        scored(TrainingReward(Stated("broken", float("nan"))))


def test_a_wrong_number_of_scores_is_an_error() -> None:
    class Short(Stated):
        def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
            return super().score(images, prompts[:1])

    with refused(RewardError, value=[0.25]):
        scored(TrainingReward(Short("short")))
