"""Processes for tests, forked from one that has imported already: each is a process of its own in a second.

The standard library's fork server is started once, imports the libraries, and forks. What it forks has its
own memory, signals, files and connections, and is killed like any other.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# By their names, and before the server starts. Nothing of ours: benchmarks/where_time_goes.py looks functions
# up before they are imported from one module into another, and what is small is imported in no time.
CONTEXT.set_forkserver_preload(
    [
        "accelerate",
        "cv2",
        "diffusers.pipelines.stable_diffusion_3",
        "matplotlib.pyplot",
        "peft",
        "pydantic",
        "rapidocr",
        "scipy.stats",
        "torch.distributed.tensor",
        "transformers.models.clip",
        "typer.rich_utils",
    ]
)


@dataclass(frozen=True)
class Fork:
    """A process that runs a function, with what it says in files."""

    process: BaseProcess
    told: Path
    """Folder with `out` and `err`."""

    def ended(self, timeout: float = 240) -> int:
        """Waits for the end and returns the exit code, negative for a signal as subprocess has it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.err)
        return self.process.exitcode

    @property
    def out(self) -> str:
        return self._said("out")

    @property
    def err(self) -> str:
        return self._said("err")

    def _said(self, name: str) -> str:
        file = self.told / name
        return file.read_text() if file.exists() else ""


def fork(
    function: Callable[..., Any], *given: Any, told: Path, environment: Mapping[str, str] | None = None
) -> Fork:
    """Starts a process that calls a function of a module, and leaves what it prints below `told`."""
    told.mkdir(parents=True)
    process = CONTEXT.Process(target=_child, args=(function, given, told, dict(environment or {})))
    process.start()
    return Fork(process, told)


def fork_several(count: int, function: Callable[..., Any], *given: Any, told: Path) -> list[Fork]:
    """Starts `count` processes that know of each other as a launcher's do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return [
        fork(
            function,
            *given,
            told=told / str(rank),
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def _child(
    function: Callable[..., Any], given: tuple[Any, ...], told: Path, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(told / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    import torch

    torch.set_num_threads(1)
    try:
        function(*given)
    finally:
        atexit._run_exitfuncs()  # which such a process leaves out, and a program's own does not


def wait_until(true: Callable[[], bool], *, seconds: float = 60) -> None:
    """Returns once something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
