"""A training that was stopped, or killed, ends bit for bit where the uninterrupted one ends."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_training import train

from errors import refused
from flow_opd.errors import CheckpointError
from flow_opd.training.progress import MetricsLog
from flow_opd.training.trainer import Trainer
from forks import Fork, fork
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

    def on_resume(self, step: int) -> None:
        """Never reached."""

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
@pytest.mark.slow
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
    with refused(CheckpointError, names=["round-0000005 of tiny"]):
        tiny_trainer(Tiny(), "opd", tmp_path, rounds=ROUNDS, identity="other").resume()
    fewer = tiny_trainer(Tiny(), "opd", tmp_path, rounds=ROUNDS)
    fewer.parameters.popitem()
    with refused(CheckpointError, value=["transformer_blocks.1.attn.to_out.0.lora_B.weight"]):
        fewer.resume()


def steps_logged(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def kill_at_random(life: Fork, folder: Path, draw: random.Random) -> bool:
    """Kills a life after a few steps, in the middle of something; says whether it was still alive."""
    aim = steps_logged(folder) + draw.randint(0, 3)
    while steps_logged(folder) < aim and life.process.exitcode is None:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.1))
    life.process.kill()
    return life.ended() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "updates"), [("opd", 1), ("grpo", 2)])
def test_real_processes_killed_at_random_moments_end_bit_identical(
    tmp_path: Path, algorithm: str, updates: int
) -> None:
    rounds, kills, draw = 12, 5, random.Random()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert fork(train, algorithm, whole, rounds, told=tmp_path / "of whole").ended() == 0
    cut_off = 0
    for index in range(kills):
        life = fork(train, algorithm, killed, rounds, told=tmp_path / f"of life {index}")
        cut_off += kill_at_random(life, killed, draw)
    assert cut_off >= 2, "too few lives were killed"
    last = fork(train, algorithm, killed, rounds, told=tmp_path / "of the last")
    assert last.ended() == 0, last.err
    check_same_end(whole, killed, rounds, updates)
    left = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert left == [f"round-{rounds - 1:07d}", f"round-{rounds:07d}"]
