"""Several rewards as one number: weights, masks, and rewards that break their promise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flow_opd.errors import RewardError
from flow_opd.rewards.table import WeightedRewards
from flow_opd.types import Prompt, RewardScores

IMAGES = torch.zeros(2, 3, 4, 4)
PROMPTS = [Prompt("one", "a", {"value": 0.25}), Prompt("two", "a", {})]


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


def test_the_total_is_the_weighted_sum_and_the_mask_is_joint() -> None:
    table = WeightedRewards([(2.0, Stated("plain")), (0.5, Stated("double", 2.0))]).score(IMAGES, PROMPTS)
    assert table.total[0].item() == pytest.approx(2.0 * 0.25 + 0.5 * 0.5)
    assert table.valid.tolist() == [True, False]
    assert set(table.scores) == {"plain", "double"}


def test_training_refuses_a_prompt_that_cannot_be_judged() -> None:
    with pytest.raises(RewardError, match=r"does not apply.*'two'"):
        WeightedRewards([(1.0, Stated("plain"))], must_apply=True).score(IMAGES, PROMPTS)


def test_a_number_that_is_not_finite_is_an_error_not_a_zero() -> None:
    broken = Stated("broken", float("nan"))
    with pytest.raises(RewardError, match="unusable scores"):
        WeightedRewards([(1.0, broken)]).score(IMAGES, PROMPTS)


def test_a_wrong_number_of_scores_is_an_error() -> None:
    class Short(Stated):
        def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
            return super().score(images, prompts[:1])

    with pytest.raises(RewardError, match="unusable scores"):
        WeightedRewards([(1.0, Short("short"))]).score(IMAGES, PROMPTS)
