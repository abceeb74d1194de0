"""flow-opd's commands, called in this process: what a user types, without the seconds that a start takes.

What a command leaves behind in a process that ends with it is put back by the fixture in conftest.py.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from errors import ANY, assert_refused
from flow_opd.cli import app

SHELL = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


@dataclass(frozen=True)
class Done:
    """How a command has ended, in the words of subprocess."""

    returncode: int
    stdout: str
    stderr: str


def flow_opd(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
    """Runs `flow-opd WORDS`; an error that is no user's is raised here, where a process shows a traceback."""
    with contextlib.chdir(cwd or Path.cwd()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["flow-opd", *words])
        result = CliRunner(env={**SHELL, **(env or {})}).invoke(
            app, words, prog_name="flow-opd", catch_exceptions=False
        )
    return Done(result.exit_code, result.stdout, result.stderr)


def succeeds(*words: str, cwd: Path | None = None) -> Done:
    """Runs a command that must end with exit code 0."""
    done = flow_opd(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def refused(*words: str, cwd: Path | None = None, value: object = ANY, names: Iterable[str] = ()) -> str:
    """Runs a command that must end with exit code 2 and a message in four parts; returns the message."""
    done = flow_opd(*words, cwd=cwd)
    assert done.returncode == 2, (done.returncode, done.stderr[-2000:])
    assert_refused(done.stderr, value=value, names=names)
    return done.stderr


@contextlib.contextmanager
def process_as_it_was() -> Iterator[None]:
    """Puts back what belongs to the whole process and commands may change."""
    environment, folder, threads = dict(os.environ), Path.cwd(), torch.get_num_threads()
    interrupt, path = signal.getsignal(signal.SIGINT), list(sys.path)
    levels = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}
    try:
        yield
    finally:
        gc.unfreeze()  # what a command sets aside for good would never be freed here
        gc.enable()
        torch.set_num_threads(threads)
        signal.signal(signal.SIGINT, interrupt)
        for name, level in levels.items():
            if logging.getLogger(name).level != level:  # setting it empties a cache of all loggers
                logging.getLogger(name).setLevel(level)
        sys.path[:] = path
        os.chdir(folder)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
