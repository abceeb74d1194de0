"""The average score reproduces the published rows."""

from __future__ import annotations

import pytest

from errors import refused
from flow_opd.errors import DataError
from flow_opd.evaluation.metrics import average_score, find_metric

PUBLISHED = [  # GenEval, OCR, DeQA, PickScore, average of arXiv 2605.08063
    (0.63, 0.59, 4.07, 21.64, 0.7165),
    (0.73, 0.83, 4.33, 21.84, 0.8165),
    (0.84, 0.86, 4.18, 21.87, 0.8442),
    (0.92, 0.94, 4.35, 23.08, 0.9044),
]


@pytest.mark.parametrize("row", PUBLISHED)
def test_published_rows(row: tuple[float, ...]) -> None:
    means = dict(zip(("geneval", "ocr", "deqa", "pickscore"), row, strict=False))
    assert average_score(means) == pytest.approx(row[4], abs=2e-4)


def test_base_by_hand() -> None:
    # (0.63 + 0.59 + 0.814 + 0.8323077) / 4
    means = {"geneval": 0.63, "ocr": 0.59, "deqa": 4.07, "pickscore": 21.64, "geneval_continuous": 0.7}
    assert round(average_score(means), 4) == 0.7166


def test_a_missing_metric_is_named() -> None:
    with refused(DataError, value=["deqa", "geneval", "ocr"]):
        average_score({"geneval": 0.63, "ocr": 0.59, "deqa": 4.07})


def test_an_unknown_metric_is_refused() -> None:
    with refused(DataError, value="orc"):
        find_metric("orc")
