"""The one-file example runs, and its student loads where PEFT adapters load."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from flow_opd.adapters.lora import LoraWeights

EXAMPLE = Path(__file__).parents[2] / "examples" / "one_file_opd.py"


@pytest.mark.slow
def test_it_merges_distils_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ("--rounds", "2", "--prompts-per-round", "4", "--steps", "2", "--rank", "4")
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *budget, "--out", str(tmp_path)])
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.count("teacher KL") == 2
    student = LoraWeights.read(tmp_path / "student")
    assert student.rank == 4
    assert len(student.factors) == 4 * 8 - 1  # four blocks of eight projections; the last has no to_add_out


def test_it_stays_readable() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 260
    assert not [line for line in lines if "flow_opd" in line and line.lstrip().startswith(("import", "from"))]
