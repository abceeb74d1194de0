"""The results table: rows of policies, paired differences, retained gains; the content of results.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flow_opd.errors import DataError, nearest
from flow_opd.evaluation.intervals import Bootstrap, Cell, Scores, paired_difference
from flow_opd.evaluation.metrics import Metric, average_score, averaged_metrics, find_metric
from flow_opd.evaluation.protocol import ProtocolCard
from flow_opd.evaluation.retention import Retention, retained_gain

ScoresByDomain = Mapping[str, Mapping[str, Scores]]  # domain -> metric -> scores


@dataclass(frozen=True)
class Row:
    """One policy: every metric on every domain where it was measured, and the average score."""

    name: str
    cells: Mapping[str, Mapping[str, Cell]]  # domain -> metric -> cell
    average: Cell | None  # None = some metric of the average was not measured on its own prompts
    tags: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)  # metric of tags -> tag -> cell

    def own(self, metrics: Sequence[Metric]) -> dict[str, Cell]:
        """Returns metric name -> cell on the metric's own prompts, where measured."""
        return {
            metric.name: self.cells[metric.domain][metric.name]
            for metric in metrics
            if metric.name in self.cells.get(metric.domain, {})
        }


@dataclass(frozen=True)
class Difference:
    """The first row minus the second, over the same prompts and seeds."""

    pair: tuple[str, str]
    metric: str  # or "average"
    domain: str | None  # None for the average
    cell: Cell


@dataclass(frozen=True)
class Roles:
    """Which row plays which role."""

    base: str
    student: str | None = None  # None = the teachers themselves are judged
    merge: str | None = None
    teachers: Mapping[str, str] = field(default_factory=dict)  # domain -> row
    baselines: tuple[str, ...] = ()  # what else the student is compared with

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the differences worth telling: along base, merge, student; to teachers and baselines."""
        if self.student is None:
            others = [*([self.merge] if self.merge is not None else []), *self.baselines]
            return [(name, self.base) for name in (*self.teachers.values(), *others)]
        pairs = [(self.student, self.base)]
        if self.merge is not None:
            pairs += [(self.student, self.merge), (self.merge, self.base)]
        return pairs + [(self.student, other) for other in (*self.teachers.values(), *self.baselines)]


@dataclass(frozen=True)
class Results:
    """Everything that an evaluation has found out."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    retention: Mapping[str, Retention]  # domain -> retained gain
    roles: Roles
    protocol: ProtocolCard
    wall_seconds: float
    peak_rss_mb: float

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON data in the layout of results.json."""
        return {
            "rows": [self._row_json(row) for row in self.rows],
            "differences": [
                {"pair": list(item.pair), "metric": item.metric, "domain": item.domain, **asdict(item.cell)}
                for item in self.differences
            ],
            "retention": {domain: asdict(item) for domain, item in self.retention.items()},
            "average": {row.name: asdict(row.average) for row in self.rows if row.average is not None},
            "roles": asdict(self.roles),
            "protocol": self.protocol.to_json(),
            "wall_seconds": self.wall_seconds,
            "peak_rss_mb": self.peak_rss_mb,
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        own = row.own(self.protocol.metrics)
        return {
            "name": row.name,
            "metrics": {name: asdict(cell) for name, cell in own.items()},
            "average": None if row.average is None else asdict(row.average),
            "cells": {
                domain: {name: asdict(cell) for name, cell in cells.items()}
                for domain, cells in row.cells.items()
            },
            "tags": {
                name: {tag: asdict(cell) for tag, cell in cells.items()} for name, cells in row.tags.items()
            },
        }


def build_results(
    scores: Mapping[str, ScoresByDomain],
    *,
    roles: Roles,
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
    bootstrap = protocol.bootstrap()
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
        domain: {metric: bootstrap.cell(scores, domain) for metric, scores in by_metric.items()}
        for domain, by_metric in domains.items()
    }
    tags = {
        metric.name: _tags(domains[metric.domain][metric.name], bootstrap, metric.domain)
        for metric in metrics
        if metric.by_tag and metric.name in domains.get(metric.domain, {})
    }
    return Row(name, cells, _average(domains, bootstrap, metrics), tags)


def _tags(scores: Scores, bootstrap: Bootstrap, domain: str) -> dict[str, Cell]:
    """Mean and interval of each tag with two judged prompts or more; fewer have no interval."""
    return {tag: bootstrap.cell(one, domain) for tag, one in scores.by_tag() if len(set(one.judged)) > 1}


def _average(domains: ScoresByDomain, bootstrap: Bootstrap, metrics: Sequence[Metric]) -> Cell | None:
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
        yield Difference(pair, "average", None, average)
    for domain, by_metric in common.items():
        for name, scores in by_metric.items():
            yield Difference(pair, name, domain, bootstrap.cell(scores, domain))


def _retention(
    measured: Mapping[str, ScoresByDomain], roles: Roles, bootstrap: Bootstrap, metrics: Sequence[Metric]
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
