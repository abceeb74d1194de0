"""Written numbers, the headline in its cases, and the table in the terminal."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flow_opd.evaluation.results import Results, load_results
from flow_opd.reports.tables import (
    duration,
    headline,
    images_per_prompt,
    number,
    percent,
    results_view,
    seeds_by_domain,
    signed,
)


def test_how_numbers_are_written() -> None:
    assert [number(-0.1234, 2), signed(0.1234, 2), signed(-1, 1), percent(0.936)] == [
        "−0.12",
        "+0.12",
        "−1.0",
        "94\N{NO-BREAK SPACE}%",
    ]
    assert [duration(7.2), duration(511.9), duration(7260)] == ["7 s", "8 min 31 s", "2 h 1 min"]


def test_seeds_are_said_once_where_all_domains_have_the_same() -> None:
    assert seeds_by_domain({"text": (0, 1), "quality": (0, 1)}) == "0, 1"
    assert seeds_by_domain({"composition": (0, 1), "text": (0,)}) == "composition 0, 1; text 0"
    assert images_per_prompt({"composition": (0, 1), "text": (0,)}) == "1 to 2"
    assert images_per_prompt({"composition": (0, 1), "text": (3, 4)}) == "2"


@pytest.mark.parametrize(
    ("low", "high", "verb"),
    [(0.1, 0.3, "lifts"), (-0.3, -0.1, "lowers"), (-0.1, 0.5, "does not clearly change")],
)
def test_the_headline_claims_no_more_than_the_interval(
    run_folder: Path, low: float, high: float, verb: str
) -> None:
    data = json.loads((run_folder / "results.json").read_text())
    for one in data["differences"]:
        if one["metric"] == "average" and one["pair"] == ["student", "base"]:
            one["low"], one["high"] = low, high
    assert headline(Results.model_validate(data)).startswith(f"Distillation {verb} the average score")


def test_the_headline_tells_how_the_student_stands_to_a_baseline(run_folder: Path) -> None:
    data = json.loads((run_folder / "results.json").read_text())
    data["roles"]["baselines"] = ["merge"]
    for one in data["differences"]:
        if one["metric"] == "average" and one["pair"] == ["student", "merge"]:
            one |= {"mean": -0.013, "low": -0.023, "high": -0.003}
    assert ", −0.013 (−0.023 to −0.003) against merge." in headline(Results.model_validate(data))


def test_the_terminal_shows_rows_differences_and_retention(run_folder: Path) -> None:
    results = load_results(run_folder / "results.json")
    console = Console(width=140, file=StringIO())
    console.print(results_view(results))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    student = results.row("student")
    assert student is not None
    assert student.average is not None
    assert f"{student.average.mean:.3f}" in text
    assert "teacher-quality" in text
    assert "student − merge" in text
    assert percent(results.retention["text"].mean or 0) in text
