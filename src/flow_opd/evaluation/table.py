"""From per-image scores to tables: estimates, paired differences and retained gains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flow_opd.config.evaluate import RolesSettings
from flow_opd.errors import DataError, nearest
from flow_opd.evaluation.intervals import Bootstrap, Scores, jointly, paired_difference
from flow_opd.evaluation.metrics import average_score, averaged_metrics, find_metric
from flow_opd.evaluation.results import Difference, Estimate, Metric, ProtocolCard, Results, Retention, Row

if TYPE_CHECKING:
    import pandas as pd

ScoresByDomain = Mapping[str, Mapping[str, Scores]]  # domain -> metric -> scores


def build_results(
    scores: Mapping[str, ScoresByDomain],
    *,
    roles: RolesSettings,
    protocol: ProtocolCard,
    wall_seconds: float,
    peak_rss_mb: float,
) -> Results:
    """Returns the whole table from per-image scores.

    Args:
        scores: row name -> domain -> metric -> scores, in the order of the table. A row may lack domains. A
            metric that judged no image of a domain that is not its own gets no entry there.
        roles: names of rows, all of which must be in `scores`.
        wall_seconds: time that the run took, seconds.
        peak_rss_mb: most memory that the process held, MiB.

    Raises:
        DataError: if a role names no row, a metric is unknown, or paired rows differ in prompts or seeds.
    """
    for name in (roles.base, roles.student, roles.merge, *roles.teachers.values(), *roles.baselines):
        if name is not None and name not in scores:
            raise DataError(
                "a role without a row",
                value=name,
                allowed=", ".join(scores),
                fix=f"evaluate it, or name another row.{nearest(name, scores)}",
            )
    bootstrap = Bootstrap(protocol.bootstrap_seed, protocol.bootstrap_resamples, protocol.level)
    measured = {name: _applicable(domains, protocol.metrics) for name, domains in scores.items()}
    return Results(
        rows=tuple(_row(name, domains, bootstrap, protocol.metrics) for name, domains in measured.items()),
        differences=tuple(
            difference
            for pair in roles.pairs()
            for difference in _differences(pair, measured, bootstrap, protocol.metrics)
        ),
        retention=_retention(measured, roles, bootstrap, protocol.metrics),
        roles=roles,
        protocol=protocol,
        wall_seconds=wall_seconds,
        peak_rss_mb=peak_rss_mb,
    )


def _applicable(domains: ScoresByDomain, metrics: Sequence[Metric]) -> dict[str, dict[str, Scores]]:
    """`domains` without metrics that apply to no image there; one's own prompts must never be among them."""
    return {
        domain: {
            name: scores
            for name, scores in by_metric.items()
            if scores.n > 0 or find_metric(name, metrics).domain == domain
        }
        for domain, by_metric in domains.items()
    }


def _row(name: str, domains: ScoresByDomain, bootstrap: Bootstrap, metrics: Sequence[Metric]) -> Row:
    cells = {
        domain: {metric: bootstrap.estimate(scores, domain) for metric, scores in by_metric.items()}
        for domain, by_metric in domains.items()
    }
    tags = {
        metric.name: _tags(domains[metric.domain][metric.name], bootstrap, metric.domain)
        for metric in metrics
        if metric.by_tag and metric.name in domains.get(metric.domain, {})
    }
    own = {
        metric.name: cells[metric.domain][metric.name]
        for metric in metrics
        if metric.name in cells.get(metric.domain, {})
    }
    average = _average(domains, bootstrap, metrics)
    return Row(name=name, metrics=own, average=average, cells=cells, tags=tags)


def _tags(scores: Scores, bootstrap: Bootstrap, domain: str) -> dict[str, Estimate]:
    """Mean and interval of each tag with two judged prompts or more; fewer have no interval."""
    return {tag: bootstrap.estimate(one, domain) for tag, one in scores.by_tag() if len(set(one.judged)) > 1}


def _average(domains: ScoresByDomain, bootstrap: Bootstrap, metrics: Sequence[Metric]) -> Estimate | None:
    """The average score, domains resampled independently; linear, so differences of scores go in as well."""
    divisors = averaged_metrics(metrics)
    own = {name: find_metric(name, metrics).domain for name in divisors}
    if any(name not in domains.get(domain, {}) for name, domain in own.items()):
        return None
    parts = {name: domains[domain][name] for name, domain in own.items()}
    means = {name: scores.mean for name, scores in parts.items()}
    draws = [bootstrap.draws(scores, own[name]) / divisors[name] for name, scores in parts.items()]
    n = sum(scores.n for scores in parts.values())
    missing = sum(len(scores.pairs) for scores in parts.values()) - n
    return bootstrap.around(average_score(means, metrics), np.mean(draws, axis=0), n, missing)


def _differences(
    pair: tuple[str, str],
    measured: Mapping[str, ScoresByDomain],
    bootstrap: Bootstrap,
    metrics: Sequence[Metric],
) -> Iterator[Difference]:
    """Differences of the average, if both have one, and of every metric that both rows have."""
    first, second = (measured[name] for name in pair)
    common = {
        domain: {
            name: paired_difference(scores, second[domain][name])
            for name, scores in by_metric.items()
            if name in second[domain]
        }
        for domain, by_metric in first.items()
        if domain in second
    }
    average = _average(common, bootstrap, metrics)
    if average is not None:
        yield _difference(pair, "average", None, average)
    for domain, by_metric in common.items():
        for name, scores in by_metric.items():
            yield _difference(pair, name, domain, bootstrap.estimate(scores, domain))


def _difference(pair: tuple[str, str], metric: str, domain: str | None, estimate: Estimate) -> Difference:
    return Difference(pair=pair, metric=metric, domain=domain, **dict(estimate))


def _retention(
    measured: Mapping[str, ScoresByDomain],
    roles: RolesSettings,
    bootstrap: Bootstrap,
    metrics: Sequence[Metric],
) -> dict[str, Retention]:
    """Retained gain per domain that has a teacher, on the domain's metric of the average score."""
    kept: dict[str, Retention] = {}
    if roles.student is None:
        return kept
    for metric in metrics:
        rows = (roles.base, roles.teachers.get(metric.domain), roles.student)
        if metric.divisor is None or any(
            name is None or metric.name not in measured[name].get(metric.domain, {}) for name in rows
        ):
            continue
        base, teacher, student = (measured[str(name)][metric.domain][metric.name] for name in rows)
        kept[metric.domain] = retained_gain(
            base,
            teacher,
            student,
            metric=metric.name,
            teacher_name=roles.teachers[metric.domain],
            domain=metric.domain,
            bootstrap=bootstrap,
        )
    return kept


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
    """Returns the share of the teacher's gain that the student keeps, over the images that all three share.

    It is (student - base) / (teacher - base). The interval is Fieller's set with bootstrap quantiles in place
    of Student's: all r for which the interval of (student - base) - r (teacher - base) holds zero. It is
    bounded exactly when the interval of the teacher's gain lies above zero; otherwise the ratio says nothing
    and its numbers are None.

    Source: Fieller 1954, "Some problems in interval estimation".

    Raises:
        DataError: if the three are not about the same (prompt, seed) pairs.
    """
    base, teacher, student = jointly(base, teacher, student)
    kept, offered = paired_difference(student, base), paired_difference(teacher, base)
    student_gain, teacher_gain = bootstrap.estimate(kept, domain), bootstrap.estimate(offered, domain)
    mean = low = high = None
    if teacher_gain.low > 0:
        mean = student_gain.mean / teacher_gain.mean
        low, high = ratio_interval(
            bootstrap.draws(kept, domain), bootstrap.draws(offered, domain), mean, bootstrap.tails
        )
    return Retention(
        metric=metric,
        teacher=teacher_name,
        mean=mean,
        low=low,
        high=high,
        n=kept.n,
        teacher_gain=teacher_gain,
        student_gain=student_gain,
    )


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


@dataclass(frozen=True)
class ScoreRow:
    """What a reward says of the pictures of an adapter."""

    name: str  # of the adapter
    reward: str
    mean: float
    low: float  # of the 95 % interval, which resamples prompts
    high: float
    images: int  # that were judged


class ScoreTable(list[ScoreRow]):
    """A row for each adapter and reward."""

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the rows as a pandas data frame; pandas has to be installed."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self])

    def __str__(self) -> str:
        """Returns a line for each row."""
        width = max((len(row.name) for row in self), default=0)
        lines = [
            f"{row.name:{width}}  {row.reward}  {row.mean:.4g}  ({row.low:.4g} to {row.high:.4g})"
            for row in self
        ]
        return "\n".join(lines)
