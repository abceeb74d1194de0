"""Trains tiny students in real processes that are killed by SIGKILL until one life reaches the end.

Run as `python killed_training.py FOLDER ROUNDS KILLS`. Writes FOLDER/<algorithm>/whole (never killed) and
FOLDER/<algorithm>/killed, and prints the kills as JSON. Every life is a process of its own; they are
forked from this one, which has only imported, to save importing torch for each of them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from flow_opd.training.progress import MetricsLog
from tiny import Tiny, tiny_trainer


def train(algorithm: str, folder: Path, rounds: int) -> None:
    """Resumes, or begins, and trains to the end."""
    trainer = tiny_trainer(Tiny(), algorithm, folder, rounds=rounds)
    trainer.resume()
    trainer.callbacks.append(MetricsLog(folder / "metrics.jsonl", resume_step=trainer.progress.step))
    trainer.run()


def begin_life(algorithm: str, folder: Path, rounds: int) -> int:
    """Forks a training and returns its process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        train(algorithm, folder, rounds)
        code = 0
    finally:
        os._exit(code)


def steps_logged(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def kill_at_random(child: int, folder: Path, draw: random.Random) -> int | None:
    """Kills a life after a few steps, in the middle of something; returns the step, or None if it ended."""
    aim = steps_logged(folder) + draw.randint(0, 3)
    while steps_logged(folder) < aim:
        if os.waitpid(child, os.WNOHANG)[0]:
            return None
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return steps_logged(folder) if os.WIFSIGNALED(status) else None


def main(folder: Path, rounds: int, kills: int) -> None:
    draw = random.Random()
    seen: dict[str, list[int]] = {}
    for algorithm in ("opd", "grpo"):
        home = folder / algorithm
        os.waitpid(begin_life(algorithm, home / "whole", rounds), 0)
        steps = [
            kill_at_random(begin_life(algorithm, home / "killed", rounds), home / "killed", draw)
            for _ in range(kills)
        ]
        seen[algorithm] = [step for step in steps if step is not None]
        os.waitpid(begin_life(algorithm, home / "killed", rounds), 0)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
