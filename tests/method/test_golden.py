"""Twenty steps of every algorithm give the losses they always gave.

A change that is not meant to be numeric leaves these files as they are. After one that is:
`FLOW_OPD_UPDATE_GOLDEN=1 pytest tests/method/test_golden.py`, and the diff goes into the review.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tiny import ALGORITHMS, UPDATES_PER_ROUND, Recorder, Tiny, tiny_trainer

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 20
NAMES = (
    "loss",
    "grad_norm",
    "velocity_matching",
    "teacher_gap",
    "teacher_kl",
    "anchor_gap",
    "reference_kl",
    "reward",
    "ratio",
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_twenty_steps(algorithm: str, tmp_path: Path) -> None:
    trainer = tiny_trainer(Tiny(), algorithm, tmp_path, rounds=STEPS // UPDATES_PER_ROUND[algorithm])
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.run()
    found = {
        name: [float(f"{line[name]:.7g}") for line in recorder.lines]
        for name in NAMES
        if name in recorder.lines[0]
    }
    file = GOLDEN / f"{algorithm}.json"
    if os.environ.get("FLOW_OPD_UPDATE_GOLDEN") == "1":
        file.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(file.read_text())
    assert golden.keys() == found.keys()
    assert len(found["loss"]) == STEPS
    for name, values in golden.items():
        # A mean of advantages is a sum that cancels, so a share of its size is no measure of its error.
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
