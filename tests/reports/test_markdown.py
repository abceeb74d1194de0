"""The results as Markdown: every number is that of results.json, and gaps are shown as gaps."""

from __future__ import annotations

import json
from pathlib import Path

from flow_opd.evaluation.results import Results, load_results
from flow_opd.reports.tables import results_markdown


def lines_of(text: str, head: str) -> dict[str, list[str]]:
    """Returns first cell -> cells of the table whose head begins with `head`."""
    table = next(part for part in text.split("\n\n") if part.startswith(f"| {head} |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {len(row) for row in rows} == {len(rows[0])}, "a ragged table does not render"
    assert set("".join(rows[1])) == {"-"}
    return {row[0]: row[1:] for row in (rows[0], *rows[2:])}


def test_every_table_says_what_the_results_say(run_folder: Path) -> None:
    results = load_results(run_folder / "results.json")
    text = results_markdown(results)
    scores = lines_of(text, "policy")
    student = results.row("student")
    assert student is not None
    assert student.average is not None
    assert scores["policy"] == ["GenEval", "OCR", "DeQA", "PickScore", "average"]
    assert scores["student"][-1].startswith(f"**{student.average.mean:.3f}** ({student.average.low:.3f} to ")
    assert len(scores) == 1 + len(results.rows)
    assert lines_of(text, "paired difference of the average")["student − base"][0].startswith("+0.")
    kept = results.retention["text"]
    assert kept.mean is not None
    assert lines_of(text, "domain")["text"][0] == f"{100 * kept.mean:.0f}\N{NO-BREAK SPACE}%"
    quality = lines_of(text, "DeQA by prompts")
    assert quality["student"][0].startswith(f"{student.cells['composition']['deqa'].mean:.2f} (")
    assert "GenEval by prompts" not in text, "it judges its own prompts only"
    tags = lines_of(text, "GenEval by tag")
    assert tags["GenEval by tag"] == list(student.tags["geneval"])
    assert len(tags["student"]) == 6
    counting = student.tags["geneval"]["counting"]
    assert tags["student"][2] == f"{counting.mean:.3f} ({counting.low:.3f} to {counting.high:.3f})"


def test_what_was_not_measured_is_a_dash(run_folder: Path) -> None:
    data = json.loads((run_folder / "results.json").read_text())
    data["rows"][0] |= {"metrics": {}, "average": None, "cells": {}, "tags": {}}
    data |= {"differences": [], "retention": {}}
    text = results_markdown(Results.model_validate(data))
    assert lines_of(text, "policy")["base"] == ["–"] * 5
    assert lines_of(text, "GenEval by tag")["base"] == ["–"] * 6
    assert "paired difference" not in text
    assert "kept" not in text.split("\n\n", 1)[1]
