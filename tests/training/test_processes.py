"""Two real processes give what one gives; when one dies the other says so, and the run goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_training import share

from errors import assert_refused
from flow_opd.method.transitions import shares_of_updates
from flow_opd.processes import ALONE, Processes
from flow_opd.training.progress import MetricsLog
from forks import Fork, fork_several, wait_until
from tiny import Tiny, read_steps, tiny_trainer

ROUNDS = 4


def start(count: int, algorithm: str, folder: Path, rounds: int, *options: str) -> list[Fork]:
    """Starts `count` processes that share one training, as a launcher does."""
    words = (algorithm, str(folder), str(rounds), *options)
    return fork_several(count, share, *words, told=folder.with_name(f"told-{folder.name}-{count}"))


def finish(running: list[Fork]) -> int:
    """Waits for success and returns the weights that the last process held."""
    held = 0
    for process in running:
        assert process.ended() == 0, process.err
        words = process.out.split()
        assert words[:2] == ["processes", str(len(running))]
        held = int(words[3])
    return held


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Returns the folder of a training in one process, this one; each is made once."""

    @cache
    def trained(algorithm: str, rounds: int) -> Path:
        folder = tmp_path_factory.mktemp(f"{algorithm}-{rounds}")
        trainer = tiny_trainer(Tiny(), algorithm, folder, rounds=rounds, micro_batch_size=3)
        trainer.callbacks.append(MetricsLog(folder / "metrics.jsonl", resume_step=0))
        trainer.run()
        return folder

    return trained


def last_parameters(folder: Path, rounds: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/round-{rounds:07d}/parameters.safetensors")


def check_same(one: Path, other: Path, rounds: int) -> None:
    expected, found = (last_parameters(folder, rounds) for folder in (one, other))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
    for line, same in zip(
        read_steps(one / "metrics.jsonl"), read_steps(other / "metrics.jsonl"), strict=True
    ):
        assert same == pytest.approx(line, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "count"), [("opd", 2), ("grpo", 2), ("grpo-mix", 3), ("opd-log-ratio", 3), ("sft", 2)]
)
def test_several_processes_train_what_one_trains(
    tmp_path: Path, alone: Callable[[str, int], Path], algorithm: str, count: int
) -> None:
    finish(start(count, algorithm, tmp_path / "many", ROUNDS))
    one = alone(algorithm, ROUNDS)
    check_same(one, tmp_path / "many", ROUNDS)
    start_of = Tiny().parameters
    end = last_parameters(tmp_path / "many", ROUNDS)
    assert max((end[key] - start_of[key]).abs().max() for key in end) > 1e-3
    shards = [sorted(file.name for file in folder.glob("samples/*/*")) for folder in (one, tmp_path / "many")]
    assert shards[0] == shards[1], "a shard has the same bytes whoever makes it"
    assert len(shards[1]) == (3 if algorithm == "sft" else 0)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "options"), [("opd", ["--checkpointing"]), ("grpo", []), ("sft", [])])
def test_a_sharded_base_trains_the_same_adapter(
    tmp_path: Path, alone: Callable[[str, int], Path], algorithm: str, options: list[str]
) -> None:
    held = finish(start(2, algorithm, tmp_path / "sharded", ROUNDS, "--shard", *options))
    check_same(alone(algorithm, ROUNDS), tmp_path / "sharded", ROUNDS)
    tiny = Tiny()
    whole = sum(value.numel() for value in tiny.backbone.transformer.parameters())
    adapters = sum(value.numel() for name in tiny.bank.names for value in tiny.bank.state(name).values())
    assert held - adapters <= 0.55 * (whole - adapters)


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "count"), [(1, 1), (0, 3)])
def test_a_lost_process_is_told_and_the_run_goes_on_with_another_number(
    tmp_path: Path, alone: Callable[[str, int], Path], lost: int, count: int
) -> None:
    rounds = 20
    running = start(2, "opd", tmp_path / "cut", rounds)
    victim, survivor = running[lost], running[1 - lost]
    log = tmp_path / "cut/metrics.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= 3)
    assert victim.process.exitcode is None
    victim.process.kill()
    assert survivor.ended() == 2, survivor.err
    assert victim.ended() == -signal.SIGKILL
    assert_refused(survivor.err)
    assert "Traceback" not in survivor.err
    before = log.read_text().splitlines()
    assert 3 <= len(before) < rounds
    finish(start(count, "opd", tmp_path / "cut", rounds))
    assert log.read_text().splitlines()[:2] == before[:2], "it went on, and did not start anew"
    expected, found = (last_parameters(folder, rounds) for folder in (alone("opd", rounds), tmp_path / "cut"))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("total", "count", "updates"), [(8, 2, 2), (7, 3, 2), (5, 1, 3), (9, 4, 1)])
def test_every_row_is_trained_once_in_the_same_update(total: int, count: int, updates: int) -> None:
    alone = list(shares_of_updates(ALONE.rows(total), total, updates))
    for update in range(updates):
        rows = []
        for index in range(count):
            own = Processes(index, count).rows(total)
            rows += [own[place] for place in list(shares_of_updates(own, total, updates))[update]]
        assert sorted(rows) == alone[update]
