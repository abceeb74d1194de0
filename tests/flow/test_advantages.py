"""Group-relative advantages by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flow_opd.flow.advantages import (
    NORMALIZATIONS,
    RoundScores,
    group_advantages,
)


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


def test_the_spread_of_a_pool_divides_what_the_group_has_centred() -> None:
    # means of the groups: 2 and 1; of all: 1.4, squares .16 1.96 2.56 1.96 2.56, std sqrt 1.84
    rewards = torch.tensor([1.0, 0.0, 3.0, 0.0, 3.0])
    groups = torch.tensor([0, 1, 0, 1, 1])
    found = group_advantages(rewards, groups, torch.zeros(5, dtype=torch.long), epsilon=0.0)
    assert found.tolist() == pytest.approx([each / 1.84**0.5 for each in (-1.0, -1.0, 1.0, -1.0, 2.0)])


# Three groups of two images: the first of task 0, the others of task 1. Reward 0 judges task 0, reward 1
# task 1, reward 2 both. Spreads of the groups: reward 0: 1; reward 1: 2, 0; reward 2: .5, .5, 1.5.
MIXED = RoundScores(
    values=torch.tensor(
        [[1.0, 0.0, 5.0], [3.0, 0.0, 6.0], [0.0, 2.0, 5.0], [0.0, 6.0, 4.0], [0.0, 4.0, 1.0], [0.0, 4.0, 4.0]]
    ),
    judged=torch.tensor([[True, False, True]] * 2 + [[False, True, True]] * 4),
    weights=torch.tensor([1.0, 3.0, 2.0]),
    groups=torch.tensor([0, 0, 1, 1, 2, 2]),
    tasks=torch.tensor([0, 0, 1, 1, 1, 1]),
)
# Totals: 11, 15 | 16, 26 | 14, 20. Centred: -2, 2 | -5, 5 | -3, 3. Task 1: mean 19, squares 9 49 25 1, std
# sqrt 21. Reward 1 over its images: mean 4, squares 4 4 0 0, std sqrt 2. Reward 2: mean 25/6, std sqrt(89)/6.
ROOT, LAST = 2**0.5, 89**0.5 / 6
EXPECTED = {
    ("sum", False): [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0],
    ("sum", True): [-1.0, 1.0, -5 / 21**0.5, 5 / 21**0.5, -3 / 21**0.5, 3 / 21**0.5],
    ("each", False): [-1 - 2, 1 + 2, -3 + 2, 3 - 2, -2.0, 2.0],
    ("each", True): [
        -1 - 2 * 0.5 / LAST,
        1 + 2 * 0.5 / LAST,
        -3 * 2 / ROOT + 2 * 0.5 / LAST,
        3 * 2 / ROOT - 2 * 0.5 / LAST,
        -2 * 1.5 / LAST,
        2 * 1.5 / LAST,
    ],
}


@pytest.mark.parametrize(("name", "round_spread"), EXPECTED)
def test_several_rewards_by_hand(name: str, round_spread: bool) -> None:
    found = NORMALIZATIONS[name](MIXED, round_spread=round_spread)
    assert found.tolist() == pytest.approx(EXPECTED[name, round_spread], rel=3e-4)  # epsilon is 1e-4


def test_the_scale_of_a_reward_matters_to_the_sum_alone() -> None:
    scaled = replace(MIXED, values=MIXED.values * torch.tensor([1.0, 1.0, 26.0]))
    for round_spread in (False, True):
        each, other = (NORMALIZATIONS["each"](one, round_spread=round_spread) for one in (MIXED, scaled))
        torch.testing.assert_close(each, other, rtol=1e-3, atol=1e-4)
        summed, moved = (NORMALIZATIONS["sum"](one, round_spread=round_spread) for one in (MIXED, scaled))
        assert (summed - moved).abs().max() > 0.1


def test_a_reward_without_an_image_in_the_round_says_nothing() -> None:
    idle = replace(
        MIXED,
        values=torch.cat([MIXED.values, torch.zeros(6, 1)], 1),
        judged=torch.cat([MIXED.judged, torch.zeros(6, 1, dtype=torch.bool)], 1),
        weights=torch.tensor([1.0, 3.0, 2.0, 7.0]),
    )
    for name in NORMALIZATIONS:
        assert NORMALIZATIONS[name](idle).equal(NORMALIZATIONS[name](MIXED))
