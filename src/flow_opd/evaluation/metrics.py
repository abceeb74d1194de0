"""What is measured, on which prompts, and how much of it goes into the average score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flow_opd.errors import DataError
from flow_opd.protocols import Reward


@dataclass(frozen=True)
class Metric:
    """One number per image, with everything a reader needs to compare it with other people's."""

    name: str
    label: str
    domain: str  # the prompts on which it counts
    scale: tuple[float | None, float | None]  # lowest and highest value; PickScore has no sharp ends
    divisor: float | None  # its weight in the average is 1 / (4 divisor); None = not part of it
    decimals: int
    definition: str
    by_tag: bool = False  # the score is the mean over the tags of its prompts of a tag's mean


METRICS: tuple[Metric, ...] = (
    Metric(
        "geneval",
        "GenEval",
        "composition",
        (0.0, 1.0),
        1.0,
        3,
        "strict: 1 if every object, count, colour and position of the caption is there, else 0; "
        "mean over the tags of a tag's mean",
        by_tag=True,
    ),
    Metric(
        "geneval_continuous",
        "GenEval (continuous)",
        "composition",
        (0.0, 1.0),
        None,
        3,
        "the share of the caption's requirements that are met; mean over the tags of a tag's mean",
        by_tag=True,
    ),
    Metric(
        "ocr",
        "OCR",
        "text",
        (0.0, 1.0),
        1.0,
        3,
        "1 - edit distance / length between the word asked for and the word read, at least 0",
    ),
    Metric(
        "deqa",
        "DeQA",
        "quality",
        (1.0, 5.0),
        5.0,
        2,
        "expected level of no-reference quality, from 1 (bad) to 5 (excellent), not divided by 5",
    ),
    Metric(
        "pickscore",
        "PickScore",
        "preference",
        (0.0, 30.0),
        26.0,
        2,
        "raw: logit scale times the cosine of picture and caption, not divided by 26",
    ),
)


READINGS = {"geneval": "geneval_strict"}
"""Metric -> what its reward reports it as, where that has another name."""


def metrics_of(rewards: Sequence[Reward], domain: str) -> tuple[Metric, ...]:
    """Returns all metrics of an evaluation: ours, and one for each reward that is not among them.

    Args:
        rewards: that judge.
        domain: the prompts on which the others count, beside ours.
    """
    ours = {metric.name for metric in METRICS}
    others = [each for each in rewards if each.name not in ours]
    definition = "as its reward gives it"
    return (
        *METRICS,
        *(Metric(each.name, each.name, domain, _ends(each.scale), None, 3, definition) for each in others),
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
