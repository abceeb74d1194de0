"""benchmarks/where_time_goes.py: what it counts, on the miniature; no time is tested."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from where_time_goes import WHOLE, Meter

from forks import fork

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "where_time_goes.py"
SHORT = ("--set", "group_size=2", "--set", "groups_per_round=2", "--set", "sampling.num_steps=3")


def run(*words: str) -> None:
    """Runs the script, which puts functions of its own in the place of others for the rest of the process."""
    sys.argv = [str(SCRIPT), *words]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def counts(told: Path, *words: str) -> dict[str, float]:
    """Returns the parts of a table and how often each was done."""
    done = fork(run, *words, told=told)
    assert done.ended() == 0, done.err[-2000:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.out.splitlines()]
    return {cells[0]: float(cells[1]) for cells in rows if len(cells) == 4 and cells[3].endswith("%")}


@pytest.mark.slow
def test_a_round(tmp_path: Path) -> None:
    walk = ("--set", "sampling.stochastic_steps=[0, 1]", "--set", "steps_per_round=1")
    found = counts(tmp_path / "told", "grpo", "--config", "teachers/text", "--rounds", "2", *SHORT, *walk)
    assert found["passes without a graph"] == 3
    assert found["passes with a graph"] == found["backward"] == 1
    assert found["decoding"] == found["reward ocr"] == found["text encoders"] == 1
    assert found["checkpoint"] == 0.5, "one in two rounds"


@pytest.mark.slow
def test_an_evaluation(tmp_path: Path) -> None:
    found = counts(
        tmp_path / "told", "evaluate", "--limit", "2", "--set", "num_steps=2", "--set", "grid_prompts=1"
    )
    cells = 2 * 4
    assert found["passes without a graph"] == 2 * cells
    assert found["decoding"] == found["reward deqa"] == found["text encoders"] == cells
    assert found["pictures of the grid drawn"] == found["tables and report"] == 1


@pytest.mark.slow
def test_a_start_ends_before_the_first_update(tmp_path: Path) -> None:
    found = counts(tmp_path / "told", "start", "--stage", "distill")
    assert found["imports"] == found["base loaded"] == found["configuration"] == 1
    assert "backward" not in found


@pytest.mark.parametrize(
    ("outer", "inner"), [("outer", {"outer": 1, "inner": 2}), (min(WHOLE), {min(WHOLE): 1})]
)
def test_a_part_is_counted_apart_unless_the_one_around_it_keeps_all(
    outer: str, inner: dict[str, int]
) -> None:
    meter = Meter()
    with meter.part(outer):
        for _ in range(2):
            with meter.part("inner"):
                pass
    assert meter.calls == inner
    assert set(meter.seconds) == set(inner)
