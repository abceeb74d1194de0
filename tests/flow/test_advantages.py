"""Group-relative advantages by hand."""

from __future__ import annotations

import pytest
import torch

from flow_opd.flow.advantages import group_advantages


def test_by_hand() -> None:
    # group 0: 1, 3: mean 2, std 1; group 1: 0, 0, 3: mean 1, std sqrt 2; the rows are interleaved
    rewards = torch.tensor([1.0, 0.0, 3.0, 0.0, 3.0])
    groups = torch.tensor([0, 1, 0, 1, 1])
    found = group_advantages(rewards, groups, epsilon=0.0)
    root = 2**-0.5
    assert found.tolist() == pytest.approx([-1.0, -root, 1.0, -root, 2 * root])
    softened = group_advantages(rewards, groups, epsilon=1.0)
    assert softened.tolist()[0] == pytest.approx(-0.5)


def test_equal_rewards_give_exactly_zero() -> None:
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7])
    assert group_advantages(rewards, torch.tensor([0, 0, 0, 1, 1, 1])).tolist() == [0.0] * 6


@pytest.mark.parametrize("shape", [(4, 1), (2, 2)])
def test_other_shapes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"must both be \[B\]"):
        group_advantages(torch.zeros(shape), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages(torch.tensor([0.0, bad]), torch.tensor([0, 0]))
