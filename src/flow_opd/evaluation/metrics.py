"""What is measured, on which prompts, and how much of it goes into the average score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flow_opd.errors import DataError
from flow_opd.evaluation.results import Metric

if TYPE_CHECKING:
    from flow_opd.protocols import Reward


METRICS: tuple[Metric, ...] = (
    Metric(
        name="geneval",
        label="GenEval",
        domain="composition",
        scale=(0.0, 1.0),
        divisor=1.0,
        decimals=3,
        definition="strict: 1 if every object, count, colour and position of the caption is there, else 0; "
        "mean over the tags of a tag's mean",
        by_tag=True,
    ),
    Metric(
        name="geneval_continuous",
        label="GenEval (continuous)",
        domain="composition",
        scale=(0.0, 1.0),
        divisor=None,
        decimals=3,
        definition="the share of the caption's requirements that are met; mean over the tags of a tag's mean",
        by_tag=True,
    ),
    Metric(
        name="ocr",
        label="OCR",
        domain="text",
        scale=(0.0, 1.0),
        divisor=1.0,
        decimals=3,
        definition="1 - edit distance / length between the word asked for and the word read, at least 0",
    ),
    Metric(
        name="deqa",
        label="DeQA",
        domain="quality",
        scale=(1.0, 5.0),
        divisor=5.0,
        decimals=2,
        definition="expected level of no-reference quality, from 1 (bad) to 5 (excellent), not divided by 5",
    ),
    Metric(
        name="pickscore",
        label="PickScore",
        domain="preference",
        scale=(0.0, 30.0),
        divisor=26.0,
        decimals=2,
        definition="raw: logit scale times the cosine of picture and caption, not divided by 26",
    ),
)


REPORTED_AS = {"geneval": "geneval_strict"}
"""Metric -> the name under which its reward reports it, where that is another."""


def metrics_of(rewards: Sequence[Reward], domain: str) -> tuple[Metric, ...]:
    """Returns all metrics of an evaluation: ours, and one for each reward that is not among them.

    Args:
        rewards: that judge.
        domain: the prompts on which the others count, beside ours.
    """
    ours = {metric.name for metric in METRICS}
    others = [each for each in rewards if each.name not in ours]
    return (
        *METRICS,
        *(_plain_metric(each, domain) for each in others),
    )


def _plain_metric(reward: Reward, domain: str) -> Metric:
    return Metric(
        name=reward.name,
        label=reward.name,
        domain=domain,
        scale=_ends(reward.scale),
        divisor=None,
        decimals=3,
        definition="as its reward gives it",
    )


def _ends(scale: tuple[float, float]) -> tuple[float | None, float | None]:
    """Returns the ends of a scale, None for one that it does not have."""
    low, high = (end if math.isfinite(end) else None for end in scale)
    return low, high


def find_metric(name: str, metrics: Sequence[Metric] = METRICS) -> Metric:
    """Returns the metric called `name`.

    Raises:
        DataError: if there is none.
    """
    for metric in metrics:
        if metric.name == name:
            return metric
    known = ", ".join(metric.name for metric in metrics)
    raise DataError("unknown metric", value=name, allowed=known, fix="use one of these names")


def averaged_metrics(metrics: Sequence[Metric] = METRICS) -> dict[str, float]:
    """Returns the metrics of the average score with their divisors: GenEval, OCR, DeQA/5, PickScore/26."""
    return {metric.name: metric.divisor for metric in metrics if metric.divisor is not None}


def average_score(means: Mapping[str, float], metrics: Sequence[Metric] = METRICS) -> float:
    """Returns the average score, (GenEval + OCR + DeQA/5 + PickScore/26) / 4, about 0 to 1.

    Source: decoded from the rows published with Flow-OPD, arXiv 2605.08063; it reproduces all of them.

    Args:
        means: metric name -> mean on that metric's own prompts; further metrics are ignored.

    Raises:
        DataError: if a metric of the average is missing.
    """
    divisors = averaged_metrics(metrics)
    missing = [name for name in divisors if name not in means]
    if missing:
        raise DataError(
            "an average score without all of its metrics",
            value=sorted(means),
            allowed=", ".join(divisors),
            fix=f"measure {', '.join(missing)} too",
        )
    return sum(means[name] / divisor for name, divisor in divisors.items()) / len(divisors)
