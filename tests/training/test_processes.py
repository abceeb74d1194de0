"""Two real processes give what one gives; when one dies the other says so, and the run goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flow_opd.method.transitions import shares_of_updates
from flow_opd.processes import ALONE, Processes
from tiny import Tiny, read_steps, tiny_trainer

SCRIPT = Path(__file__).with_name("shared_training.py")


def start(
    count: int, algorithm: str, folder: Path, rounds: int, *options: str
) -> list[subprocess.Popen[str]]:
    """Starts `count` processes that share one training, as a launcher does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), algorithm, str(folder), str(rounds), *options],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(running: list[subprocess.Popen[str]]) -> int:
    """Waits for success and returns the weights that the last process held."""
    held = 0
    for process in running:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        words = out.split()
        assert words[:2] == ["processes", str(len(running))]
        held = int(words[3])
    return held


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


@pytest.mark.parametrize(
    ("algorithm", "count"), [("opd", 2), ("grpo", 2), ("grpo-mix", 3), ("opd-log-ratio", 3), ("sft", 2)]
)
def test_several_processes_train_what_one_trains(tmp_path: Path, algorithm: str, count: int) -> None:
    rounds = 4
    finish(start(1, algorithm, tmp_path / "one", rounds))
    finish(start(count, algorithm, tmp_path / "many", rounds))
    check_same(tmp_path / "one", tmp_path / "many", rounds)
    start_of = Tiny().parameters
    end = last_parameters(tmp_path / "many", rounds)
    assert max((end[key] - start_of[key]).abs().max() for key in end) > 1e-3
    one, many = (
        sorted(file.name for file in (tmp_path / name).glob("samples/*/*")) for name in ("one", "many")
    )
    assert one == many, "a shard has the same bytes whoever makes it"
    assert len(many) == (3 if algorithm == "sft" else 0)


@pytest.mark.parametrize(("algorithm", "options"), [("opd", ["--checkpointing"]), ("grpo", []), ("sft", [])])
def test_a_sharded_base_trains_the_same_adapter(tmp_path: Path, algorithm: str, options: list[str]) -> None:
    rounds = 3
    whole = finish(start(1, algorithm, tmp_path / "one", rounds))
    held = finish(start(2, algorithm, tmp_path / "sharded", rounds, "--shard", *options))
    check_same(tmp_path / "one", tmp_path / "sharded", rounds)
    adapters = sum(value.numel() for name in Tiny().bank.names for value in Tiny().bank.state(name).values())
    assert held - adapters <= 0.55 * (whole - adapters)


@pytest.mark.parametrize(("lost", "count"), [(1, 1), (0, 3)])
def test_a_lost_process_is_told_and_the_run_goes_on_with_another_number(
    tmp_path: Path, lost: int, count: int
) -> None:
    rounds = 40
    running = start(2, "opd", tmp_path / "cut", rounds)
    victim, survivor = running[lost], running[1 - lost]
    log = tmp_path / "cut/metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert victim.poll() is None
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    _, err = survivor.communicate(timeout=240)
    victim.communicate()
    assert survivor.returncode == 2, err
    assert "another process of this run has stopped" in err
    assert "Traceback" not in err
    before = log.read_text().splitlines()
    assert 3 <= len(before) < rounds
    finish(start(count, "opd", tmp_path / "cut", rounds))
    assert log.read_text().splitlines()[:2] == before[:2], "it went on, and did not start anew"
    tiny_trainer(Tiny(), "opd", tmp_path / "whole", rounds=rounds, micro_batch_size=3).run()
    expected, found = (last_parameters(tmp_path / name, rounds) for name in ("whole", "cut"))
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
