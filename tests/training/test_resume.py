"""A training that was stopped, or killed, ends bit for bit where the uninterrupted one ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flow_opd.errors import CheckpointError
from flow_opd.training.progress import MetricsLog
from flow_opd.training.trainer import Trainer
from tiny import Tiny, read_steps, tiny_trainer

KINDS = ("parameters", "optimizer", "average")
ROUNDS = 5


class PowerCutError(Exception):
    """What stops a training in the middle."""


class CutAt:
    """Stops the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_update(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.step:
            raise PowerCutError

    def on_end(self) -> None:
        """Never reached."""


def begin(algorithm: str, folder: Path) -> Trainer:
    trainer = tiny_trainer(Tiny(), algorithm, folder, rounds=ROUNDS)
    trainer.resume()
    trainer.callbacks.append(MetricsLog(folder / "metrics.jsonl", resume_step=trainer.progress.step))
    return trainer


def check_same_end(one: Path, other: Path, rounds: int, updates: int) -> None:
    """Checks that two run folders hold the same last checkpoint, bit for bit, and the same log."""
    name = f"checkpoints/round-{rounds:07d}"
    for kind in KINDS:
        found, expected = (load_file(folder / name / f"{kind}.safetensors") for folder in (one, other))
        assert found.keys() == expected.keys()
        assert len(found) > 0
        for key, tensor in found.items():
            assert torch.equal(tensor, expected[key]), f"{kind}: {key}"
    found_progress, expected_progress = (
        json.loads((folder / name / "state.json").read_text())["progress"] for folder in (one, other)
    )
    assert found_progress["step"] == expected_progress["step"] == rounds * updates
    lines = read_steps(one / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, rounds * updates + 1))
    assert lines == read_steps(other / "metrics.jsonl")


@pytest.mark.parametrize(("algorithm", "cut_at", "updates"), [("opd", 3, 1), ("grpo", 5, 2), ("sft", 3, 1)])
def test_a_stopped_training_goes_on_exactly(
    tmp_path: Path, algorithm: str, cut_at: int, updates: int
) -> None:
    """GRPO is cut between the two updates of a round, whose rollouts must come out the same again."""
    begin(algorithm, tmp_path / "whole").run()
    first = begin(algorithm, tmp_path / "cut")
    first.callbacks.append(CutAt(cut_at))
    with pytest.raises(PowerCutError):
        first.run()
    second = begin(algorithm, tmp_path / "cut")
    assert 0 < second.progress.step < cut_at
    second.run()
    check_same_end(tmp_path / "whole", tmp_path / "cut", ROUNDS, updates)


def test_a_finished_training_has_nothing_to_do(tmp_path: Path) -> None:
    begin("opd", tmp_path).run()
    files = [tmp_path / "metrics.jsonl", tmp_path / "checkpoints"]
    written = [file.stat().st_mtime_ns for file in files]
    again = tiny_trainer(Tiny(), "opd", tmp_path, rounds=ROUNDS)
    assert again.resume()
    again.run()
    assert again.progress.step == ROUNDS
    assert [file.stat().st_mtime_ns for file in files] == written


def test_another_training_is_refused(tmp_path: Path) -> None:
    begin("opd", tmp_path).run()
    with pytest.raises(CheckpointError, match=r"other settings.*of tiny.*checkpoints of other"):
        tiny_trainer(Tiny(), "opd", tmp_path, rounds=ROUNDS, identity="other").resume()
    fewer = tiny_trainer(Tiny(), "opd", tmp_path, rounds=ROUNDS)
    fewer.parameters.popitem()
    with pytest.raises(CheckpointError, match="other parameters"):
        fewer.resume()


def test_real_processes_killed_at_random_moments_end_bit_identical(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_training.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rounds, kills = 12, 5
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(rounds), str(kills)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout.splitlines()[-1])
    for algorithm, updates in (("opd", 1), ("grpo", 2)):
        home = tmp_path / algorithm
        check_same_end(home / "whole", home / "killed", rounds, updates)
        assert len(killed[algorithm]) >= 2, f"too few lives were killed: {killed}"
        left = sorted(path.name for path in (home / "killed" / "checkpoints").iterdir())
        assert left == [f"round-{rounds - 1:07d}", f"round-{rounds:07d}"]
