"""How much of a teacher's gain the student keeps: (student - base) / (teacher - base)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flow_opd.evaluation.intervals import Bootstrap, Cell, Scores, jointly, paired_difference


@dataclass(frozen=True)
class Retention:
    """The kept share of a teacher's gain; without numbers where the teacher has no clear gain to keep."""

    metric: str
    teacher: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    teacher_gain: Cell
    student_gain: Cell


def retained_gain(
    base: Scores,
    teacher: Scores,
    student: Scores,
    *,
    metric: str,
    teacher_name: str,
    domain: str,
    bootstrap: Bootstrap,
) -> Retention:
    """Returns the retained share of the teacher's gain with its interval, over images that all three share.

    The interval is Fieller's set with bootstrap quantiles in place of Student's: all r for which the
    interval of (student - base) - r (teacher - base) holds zero. It is bounded exactly when the interval of
    the teacher's gain lies above zero; otherwise the ratio says nothing and its numbers are None.

    Source: Fieller 1954, "Some problems in interval estimation".

    Raises:
        DataError: if the three are not about the same (prompt, seed) pairs.
    """
    base, teacher, student = jointly(base, teacher, student)
    kept, offered = paired_difference(student, base), paired_difference(teacher, base)
    student_gain, teacher_gain = bootstrap.cell(kept, domain), bootstrap.cell(offered, domain)
    mean = low = high = None
    if teacher_gain.low > 0:
        mean = student_gain.mean / teacher_gain.mean
        low, high = ratio_interval(
            bootstrap.draws(kept, domain), bootstrap.draws(offered, domain), mean, bootstrap.tails
        )
    return Retention(metric, teacher_name, mean, low, high, kept.n, teacher_gain, student_gain)


def ratio_interval(
    above: NDArray[np.float64], below: NDArray[np.float64], ratio: float, tails: tuple[float, float]
) -> tuple[float, float]:
    """Returns the ends of all r for which the interval of above - r below holds zero.

    Args:
        above, below: paired resampled means, [R]; the lower quantile of `below` must be positive.
        ratio: the point estimate, inside the interval.
        tails: lower and upper quantile, such as (0.025, 0.975).
    """
    lower, upper = tails
    assert np.quantile(below, lower) > 0, "the ratio is unbounded"
    low = _boundary(above, below, ratio, -1.0, lower)
    high = _boundary(above, below, ratio, 1.0, upper)
    return low, high


def _boundary(
    above: NDArray[np.float64], below: NDArray[np.float64], ratio: float, direction: float, quantile: float
) -> float:
    """The r on one side of `ratio` where the quantile of above - r below crosses zero, by bisection."""

    def inside(r: float) -> bool:
        return bool(direction * np.quantile(above - r * below, quantile) >= 0)

    reach = 1e-3
    while inside(ratio + direction * reach):
        reach *= 2
    near, far = 0.0, reach
    for _ in range(50):
        middle = (near + far) / 2
        near, far = (middle, far) if inside(ratio + direction * middle) else (near, middle)
    return ratio + direction * near
