"""docs/python.md: its blocks run in order, and are as short as a reader would hope."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest

import flow_opd

pytestmark = pytest.mark.slow
PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The names that the blocks have made, and what they have printed."""
    names: dict[str, Any] = {}
    output = io.StringIO()
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("python"))
    try:
        with contextlib.redirect_stdout(output):
            for index, block in enumerate(BLOCKS):
                exec(compile(block, f"docs/python.md, block {index + 1}", "exec"), names)
    finally:
        os.chdir(before)
    return names, output.getvalue()


def lines(block: str) -> int:
    return sum(bool(line.strip()) for line in block.splitlines())


def test_own_objective_takes_fifteen_lines() -> None:
    assert lines(BLOCKS[0]) <= 15


def test_own_reward_takes_twelve_lines() -> None:
    reward = next(block for block in BLOCKS if "def redness" in block)
    assert lines(reward) <= 12


def test_every_block_runs(spoken: tuple[dict[str, Any], str]) -> None:
    names, output = spoken
    assert output.count("round ") >= 13
    assert "2 of 4 rounds" in output
    assert names["training"].round == 4
    assert list(dict.fromkeys(row.name for row in names["table"])) == ["base", "merge", "student"]
    assert len(names["pictures"]) == 2
    assert names["mixed"].history[-1]["round"] == 2


def test_looking_changes_nothing(spoken: tuple[dict[str, Any], str]) -> None:
    """The student that was looked at halfway ends where one ends that was trained at a stretch."""
    names, _ = spoken
    again = flow_opd.distill(
        names["base"], names["teachers"], names["prompts"], names["config"], rounds=4, student=names["start"]
    ).train()
    assert again.adapter.digest() == names["training"].adapter.digest()
    assert names["halfway"].digest() != again.adapter.digest()


def test_the_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = re.findall(r"```python\n(import flow_opd\n.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace("rounds=10", "rounds=1"), "README.md", "exec"), {})
    assert flow_opd.load_adapter(tmp_path / "my-student").rank == 32
