"""The one-file example runs, and its student loads where PEFT adapters load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from flow_opd.adapters.lora import LoraWeights

EXAMPLE = Path(__file__).parents[2] / "examples" / "one_file_opd.py"


def test_it_merges_distils_and_saves(tmp_path: Path) -> None:
    budget = ("--rounds", "2", "--prompts-per-round", "4", "--steps", "2", "--rank", "4")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *budget, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("teacher KL") == 2
    student = LoraWeights.read(tmp_path / "student")
    assert student.rank == 4
    assert len(student.factors) == 4 * 8 - 1  # four blocks of eight projections; the last has no to_add_out


def test_it_stays_readable() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 260
    assert not [line for line in lines if "flow_opd" in line and line.lstrip().startswith(("import", "from"))]
