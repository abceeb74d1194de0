"""The content of results.json: numbers by hand, pairs, roles, and a layout that readers rely on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from errors import refused
from flow_opd.config.evaluate import RolesSettings
from flow_opd.errors import DataError
from flow_opd.evaluation.intervals import Scores
from flow_opd.evaluation.metrics import METRICS
from flow_opd.evaluation.results import RESAMPLED, PromptFile, ProtocolCard, Results
from flow_opd.evaluation.table import ScoresByDomain, build_results

OWN = {"composition": "geneval", "text": "ocr", "preference": "pickscore", "quality": "deqa"}
BASE = {"geneval": 0.63, "ocr": 0.59, "pickscore": 21.64, "deqa": 4.07}
CARD = ProtocolCard(
    steps=20,
    dynamics="ode",
    guidance={"base": 4.5},
    resolution=(32, 32),
    prompts={},
    seeds={},
    metrics=METRICS,
)


def evaluated(means: dict[str, float], seed: int, n: int = 100) -> dict[str, dict[str, Scores]]:
    """Scores whose mean is exactly as given, with the same hard prompts for every row."""
    noise = np.random.default_rng(seed).normal(0, 0.02, n)
    noise -= noise.mean()
    scores: dict[str, dict[str, Scores]] = {}
    for domain, metric in OWN.items():
        hard = np.random.default_rng(len(domain)).normal(0, 0.1, n)
        values = means[metric] + (hard - hard.mean()) + noise
        ids = [f"{index}" for index in range(n)]
        scores[domain] = {metric: Scores.of(ids, [0] * n, values)}
        scores[domain]["deqa"] = scores[domain].get("deqa", Scores.of(ids, [0] * n, 4.0 + hard))
    return scores


def results(rows: dict[str, ScoresByDomain], roles: RolesSettings) -> Results:
    return build_results(rows, roles=roles, protocol=CARD, wall_seconds=12.5, peak_rss_mb=900.0)


def shifted(amount: float) -> dict[str, float]:
    return {name: value + amount for name, value in BASE.items()}


@pytest.fixture
def table() -> Results:
    rows: dict[str, ScoresByDomain] = {
        "base": evaluated(BASE, 0),
        "teacher-ocr": {"text": evaluated(shifted(0.25), 1)["text"]},
        "merge": evaluated(shifted(0.1), 2),
        "student": evaluated(shifted(0.2), 3),
    }
    return results(
        rows, RolesSettings(base="base", student="student", merge="merge", teachers={"text": "teacher-ocr"})
    )


def test_average_of_the_base_by_hand(table: Results) -> None:
    average = table.rows[0].average
    assert average is not None
    assert round(average.mean, 4) == 0.7166
    assert average.low < average.mean < average.high
    assert average.n == 400


def test_a_row_without_all_domains_has_no_average(table: Results) -> None:
    by_name = {row.name: row for row in table.rows}
    assert by_name["teacher-ocr"].average is None
    assert set(table.to_json()["average"]) == {"base", "merge", "student"}


def test_difference_of_averages_by_hand_and_narrower_than_the_averages(table: Results) -> None:
    [item] = [d for d in table.differences if d.pair == ("student", "base") and d.metric == "average"]
    assert item.domain is None
    assert item.mean == pytest.approx((0.2 + 0.2 + 0.2 / 5 + 0.2 / 26) / 4)
    base = table.rows[0].average
    assert base is not None
    assert item.high - item.low < base.high - base.low


def test_an_average_interval_adds_the_variances_of_its_domains(table: Results) -> None:
    base = table.rows[0]
    assert base.average is not None
    widths = [
        (base.cells[domain][metric].high - base.cells[domain][metric].low) / divisor / 4
        for domain, metric, divisor in [
            ("composition", "geneval", 1),
            ("text", "ocr", 1),
            ("quality", "deqa", 5),
            ("preference", "pickscore", 26),
        ]
    ]
    expected = float(np.sqrt(np.square(widths).sum()))
    assert base.average.high - base.average.low == pytest.approx(expected, rel=0.08)


def test_rows_are_compared_where_both_were_measured(table: Results) -> None:
    against_teacher = [d for d in table.differences if d.pair == ("student", "teacher-ocr")]
    assert {(d.domain, d.metric) for d in against_teacher} == {("text", "ocr"), ("text", "deqa")}


def test_retention_per_domain_that_has_a_teacher(table: Results) -> None:
    assert set(table.retention) == {"text"}
    kept = table.retention["text"]
    assert kept.mean == pytest.approx(0.2 / 0.25)
    assert kept.low is not None
    assert kept.high is not None
    assert kept.low < 0.8 < kept.high
    assert kept.teacher == "teacher-ocr"


def test_layout_of_results_json(table: Results) -> None:
    data = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert set(data) == {
        "rows",
        "differences",
        "retention",
        "average",
        "roles",
        "protocol",
        "wall_seconds",
        "peak_rss_mb",
    }
    estimate = {"mean", "low", "high", "n", "missing"}
    for row in data["rows"]:
        assert set(row) == {"name", "metrics", "average", "cells", "tags"}
        assert all(set(one) == estimate for one in row["metrics"].values())
        assert all(set(one) == estimate for by in row["cells"].values() for one in by.values())
    for item in data["differences"]:
        assert set(item) == {"pair", "metric", "domain"} | estimate
    assert data["rows"][0]["metrics"]["deqa"] == data["rows"][0]["cells"]["quality"]["deqa"]
    assert data["protocol"]["hash"] == CARD.hash


def test_what_is_read_is_what_was_written(table: Results) -> None:
    """The keys in their order, too; the hash is that of the file, whatever this version would make of it."""
    data = table.to_json()
    data["protocol"]["hash"] = "0123456789ab"
    text = json.dumps(data)
    assert json.dumps(Results.model_validate_json(text).to_json()) == text


def test_a_metric_that_judged_nothing_off_its_domain_has_no_entry_but_on_its_own_it_is_an_error() -> None:
    base, student = evaluated(BASE, 0), evaluated(shifted(0.1), 1)
    empty = Scores.of(["0", "1"], [0, 0], [np.nan, np.nan], [False, False])
    base["quality"]["ocr"] = empty
    table = results({"base": base, "student": student}, RolesSettings(base="base", student="student"))
    assert "ocr" not in table.rows[0].cells["quality"]
    base["text"]["ocr"] = empty
    with refused(DataError, value=0):
        results({"base": base, "student": student}, RolesSettings(base="base", student="student"))


def test_the_student_answers_to_the_baselines(table: Results) -> None:
    rows: dict[str, ScoresByDomain] = {
        "base": evaluated(BASE, 0),
        "student": evaluated(shifted(0.1), 1),
        "mix": evaluated(shifted(0.2), 2),
    }
    against = results(rows, RolesSettings(base="base", student="student", baselines=("mix",)))
    [item] = [d for d in against.differences if d.pair == ("student", "mix") and d.metric == "average"]
    assert item.mean == pytest.approx(-(0.1 + 0.1 + 0.1 / 5 + 0.1 / 26) / 4)
    with refused(DataError, value="mixed"):
        results(rows, RolesSettings(base="base", student="student", baselines=("mixed",)))


def test_without_a_student_the_teachers_are_compared_with_the_base() -> None:
    rows: dict[str, ScoresByDomain] = {"base": evaluated(BASE, 0), "teacher": evaluated(shifted(0.1), 1)}
    table = results(rows, RolesSettings(base="base", teachers={"text": "teacher"}))
    assert {item.pair for item in table.differences} == {("teacher", "base")}
    assert table.retention == {}
    assert json.loads(json.dumps(table.to_json()))["roles"]["student"] is None


def test_a_role_without_a_row_is_refused() -> None:
    with refused(DataError, value="studnet", names=["student"]):
        results(
            {"base": evaluated(BASE, 0), "student": evaluated(BASE, 1)},
            RolesSettings(base="base", student="studnet"),
        )


def test_rows_over_other_prompts_are_refused() -> None:
    rows: dict[str, ScoresByDomain] = {"base": evaluated(BASE, 0), "student": evaluated(BASE, 1, n=99)}
    with refused(DataError, value=("99", 0)):
        results(rows, RolesSettings(base="base", student="student"))


def test_the_card_hash_changes_with_the_protocol_and_not_with_the_order_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("{}\n")
    entry = PromptFile.of(file, 1)
    assert entry.sha256.startswith("ca3d163b")
    assert entry.name == "prompts.jsonl"

    def hashed(steps: int, prompts: dict[str, PromptFile], resampled: str = RESAMPLED) -> str:
        changed = {"steps": steps, "prompts": prompts, "resampled": resampled, "hash": ""}
        return ProtocolCard.model_validate({**dict(CARD), **changed}).hash

    both, swapped = {"a": entry, "b": entry}, {"b": entry, "a": entry}
    assert hashed(20, both) == hashed(20, swapped)
    assert hashed(20, both) != hashed(40, both)
    assert hashed(20, both, "lines") != hashed(20, both)
    assert len(hashed(20, both)) == 12
    with refused(DataError, names=["none.jsonl"]):
        PromptFile.of(tmp_path / "none.jsonl", 1)
