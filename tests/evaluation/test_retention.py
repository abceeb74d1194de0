"""The retained gain against what is known, and its silence where there is nothing to retain."""

from __future__ import annotations

import numpy as np
import pytest

from flow_opd.evaluation.intervals import Bootstrap, Scores
from flow_opd.evaluation.results import Retention
from flow_opd.evaluation.table import ratio_interval, retained_gain


def simulated(generator: np.random.Generator, gain: float, kept: float, n: int = 150) -> Retention:
    difficulty = generator.normal(size=n)
    ids = [f"{index}" for index in range(n)]

    def row(shift: float) -> Scores:
        return Scores.of(ids, [0] * n, difficulty + shift + 0.5 * generator.normal(size=n))

    return retained_gain(
        row(0.0),
        row(gain),
        row(kept * gain),
        metric="ocr",
        teacher_name="teacher-ocr",
        domain="text",
        bootstrap=Bootstrap(resamples=400),
    )


@pytest.mark.slow
def test_the_interval_covers_the_true_share() -> None:
    generator = np.random.default_rng(2)
    found = [simulated(generator, gain=0.4, kept=0.9) for _ in range(300)]
    covered = sum(one.low <= 0.9 <= one.high for one in found if one.low is not None and one.high is not None)
    assert 0.91 <= covered / 300 <= 0.98


def test_a_student_above_its_teacher_keeps_more_than_all() -> None:
    kept = simulated(np.random.default_rng(0), gain=0.5, kept=1.6)
    assert kept.low is not None
    assert kept.low > 1


@pytest.mark.parametrize("gain", [0.0, -0.5])
def test_no_number_where_the_teacher_gained_nothing(gain: float) -> None:
    kept = simulated(np.random.default_rng(0), gain=gain, kept=1.0)
    assert (kept.mean, kept.low, kept.high) == (None, None, None)
    assert kept.teacher_gain.low <= 0
    assert kept.n == 150


def test_a_barely_clear_gain_has_a_finite_interval() -> None:
    generator = np.random.default_rng(0)
    below = generator.normal(2.2, 1.0, 4000)
    assert np.quantile(below, 0.025) > 0
    assert below.min() < 0
    above = 0.5 * below + 0.1 * generator.normal(size=4000)
    low, high = ratio_interval(above, below, 0.5, (0.025, 0.975))
    assert -10 < low < 0.5 < high < 10


def test_a_proportional_student_has_a_share_without_doubt() -> None:
    below = np.random.default_rng(0).normal(4.0, 1.0, 4000)
    assert ratio_interval(0.8 * below, below, 0.8, (0.025, 0.975)) == pytest.approx((0.8, 0.8))
