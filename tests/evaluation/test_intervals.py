"""Intervals cover the truth as often as they say, and pairs must be pairs."""

from __future__ import annotations

import numpy as np
import pytest

from errors import refused
from flow_opd.errors import DataError
from flow_opd.evaluation.intervals import Bootstrap, Scores, jointly, paired_difference


def scores(values: np.ndarray, valid: np.ndarray | None = None, seed: int = 0) -> Scores:
    ids = [f"prompt/{index:04d}" for index in range(len(values))]
    return Scores.of(ids, [seed] * len(values), values, valid)


@pytest.mark.parametrize("kind", ["binary", "skewed"])
def test_an_interval_covers_the_truth_in_95_percent_of_the_repetitions(kind: str) -> None:
    generator = np.random.default_rng(0)
    bootstrap = Bootstrap(seed=1, resamples=1000)
    covered = 0
    for _ in range(400):
        values = generator.random(120) < 0.6 if kind == "binary" else generator.exponential(0.6, 120)
        one = bootstrap.estimate(scores(values.astype(float)))
        covered += one.low <= 0.6 <= one.high
    assert 0.92 <= covered / 400 <= 0.975


def test_seeds_of_one_prompt_are_resampled_together() -> None:
    generator = np.random.default_rng(0)
    per_prompt = generator.normal(size=200)
    ids = [f"p{index:03d}" for index in range(200)]
    once = Scores.of(ids, [0] * 200, per_prompt)
    copied = Scores.of(ids * 4, np.repeat([0, 1, 2, 3], 200).tolist(), np.tile(per_prompt, 4))
    narrow, wide = Bootstrap().estimate(once), Bootstrap().estimate(copied)
    assert (wide.low, wide.high) == pytest.approx((narrow.low, narrow.high))
    assert (narrow.n, wide.n) == (200, 800)


def test_a_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=300)
    a = scores(difficulty + 0.3 + 0.1 * generator.normal(size=300))
    b = scores(difficulty + 0.1 * generator.normal(size=300))
    bootstrap = Bootstrap()
    paired = bootstrap.estimate(paired_difference(a, b))
    first, second = bootstrap.estimate(a), bootstrap.estimate(b)
    assert paired.low < 0.3 < paired.high
    assert (
        paired.high - paired.low
        < 0.3 * ((first.high - first.low) ** 2 + (second.high - second.low) ** 2) ** 0.5
    )


def test_pairs_may_come_in_another_order() -> None:
    a = Scores.of(["x", "y", "z"], [0, 0, 0], [1.0, 2.0, 4.0])
    b = Scores.of(["z", "x", "y"], [0, 0, 0], [3.0, 1.0, 0.0])
    assert paired_difference(a, b).values.tolist() == [0.0, 2.0, 1.0]


@pytest.mark.parametrize("other", [(["x", "w"], [0, 0]), (["x", "y"], [0, 1]), (["x"], [0])])
def test_other_prompts_or_seeds_are_refused(other: tuple[list[str], list[int]]) -> None:
    a = Scores.of(["x", "y"], [0, 0], [1.0, 2.0])
    b = Scores.of(other[0], other[1], np.ones(len(other[0])))
    with pytest.raises(DataError, match="same prompts and seeds"):
        Bootstrap().estimate(paired_difference(a, b))


def test_what_could_not_be_judged_is_counted_and_never_read() -> None:
    values = np.array([1.0, 0.0, np.nan, 1.0])
    one = Bootstrap().estimate(scores(values, np.isfinite(values)))
    assert one.mean == pytest.approx(2 / 3)
    assert (one.n, one.missing) == (3, 1)


def test_a_difference_counts_only_images_that_both_rows_judged() -> None:
    a = scores(np.array([1.0, 2.0, np.nan, 5.0]), np.array([True, True, False, True]))
    b = scores(np.array([0.0, np.nan, 0.0, 1.0]), np.array([True, False, True, True]))
    difference = Bootstrap().estimate(paired_difference(a, b))
    assert (difference.mean, difference.n, difference.missing) == (2.5, 2, 2)
    assert [one.n for one in jointly(a, b)] == [2, 2]


def test_a_valid_score_that_is_no_number_is_refused() -> None:
    with refused(DataError, names=["prompt/0001"]):
        scores(np.array([1.0, np.nan]))


def test_an_image_scored_twice_is_refused() -> None:
    with refused(DataError, value=("x", 0)):
        Scores.of(["x", "x"], [0, 0], [1.0, 2.0])


def test_different_lengths_are_refused() -> None:
    with refused(DataError, value=(2, 1, 2, 2, (2,), (2,))):
        Scores.of(["x", "y"], [0], [1.0, 2.0])
    with refused(DataError, value=(2, 2, 2, 2, (2, 1), (2, 1))):
        Scores.of(["x", "y"], [0, 0], np.ones((2, 1)))


def test_one_prompt_has_no_interval() -> None:
    with refused(DataError, value=1):
        Bootstrap().estimate(scores(np.ones(1)))


def test_equal_seeds_give_equal_intervals_and_strata_are_independent() -> None:
    values = np.random.default_rng(0).normal(size=50)
    one = Bootstrap(seed=3).estimate(scores(values), "text")
    assert Bootstrap(seed=3).estimate(scores(values), "text") == one
    assert Bootstrap(seed=4).estimate(scores(values), "text") != one
    first, second = (Bootstrap(seed=3).draws(scores(values), stratum) for stratum in ("text", "quality"))
    assert abs(np.cov(first, second)[0, 1]) < 0.1 * first.std() * second.std()
