"""What passes between a training and who watches it: a progress bar, metrics.jsonl, an interrupt."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flow_opd.files import write_text


class ProgressBar:
    """Shows step, time left and a few metrics; on a pipe it prints a line now and then instead."""

    def __init__(
        self,
        title: str,
        *,
        total_steps: int,
        done: int = 0,
        show: Sequence[str] = ("loss",),
        lines: int = 20,
        shown: bool = True,
    ) -> None:
        """Draws the bar.

        Args:
            title: what is being trained.
            total_steps: optimizer steps in all.
            done: steps that a checkpoint has already seen.
            show: names of the metrics to print, in order; absent ones are skipped.
            lines: how many lines a whole training prints where there is no terminal.
            shown: False keeps silent, in a process that is not the main one.
        """
        self.console = Console(stderr=True, quiet=not shown)
        self.title = title
        self.show = list(show)
        self.total = total_steps
        self.every = max(1, total_steps // lines)
        self.done = done
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total_steps, completed=done, numbers="")
        self.bar.start()

    def on_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Advances the bar."""
        numbers = "  ".join(f"{name} {metrics[name]:.4g}" for name in self.show if name in metrics)
        self.bar.update(self.task, completed=step, numbers=numbers)
        due = step > self.done and (step // self.every > self.done // self.every or step == self.total)
        self.done = step
        if not self.console.is_terminal and due:
            line = f"{self.title}: step {step}/{self.total}  {numbers}".rstrip()
            self.console.print(line, highlight=False)

    def on_resume(self, step: int) -> None:
        """Moves the bar back to `step`."""
        self.done = step
        self.bar.update(self.task, completed=step)

    def rename(self, title: str) -> None:
        """Says from now on that `title` is worked on."""
        self.title = title
        self.bar.update(self.task, description=title)

    def on_end(self) -> None:
        """Leaves the finished bar on the screen."""
        self.bar.stop()


class MetricsLog:
    """Appends {"step", "time", ...} lines; on resume it forgets lines newer than the checkpoint."""

    def __init__(self, path: Path, *, resume_step: int = 0, every: int = 1) -> None:
        """Opens the log.

        Args:
            path: the jsonl file.
            resume_step: steps that the resumed checkpoint has seen; later lines are dropped.
            every: write each n-th step only.
        """
        self.path = path
        self.every = every
        self.on_resume(resume_step)

    def on_resume(self, step: int) -> None:
        """Forgets the lines that are newer than `step`."""
        kept: list[str] = []
        if self.path.exists() and step:
            for line in self.path.read_text().splitlines():
                try:
                    found = json.loads(line)["step"]
                except ValueError:  # the line that a kill cut in two
                    break
                if found <= step:
                    kept.append(line)
        self._offset = float(json.loads(kept[-1])["time"]) if kept else 0.0
        self._started = time.monotonic()
        write_text(self.path, "".join(line + "\n" for line in kept))

    def on_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line."""
        if step % self.every:
            return
        seconds = round(self._offset + time.monotonic() - self._started, 3)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "time": seconds, **metrics}) + "\n")

    def on_end(self) -> None:
        """Nothing is buffered."""


@contextmanager
def deferred_interrupt(*, alone: bool) -> Iterator[threading.Event]:
    """Yields what is set by an interrupt inside the context; a second one interrupts at once.

    Args:
        alone: False leaves interrupts as they are: processes that share an update must stop together.
    """
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if not alone or threading.current_thread() is not threading.main_thread() or not callable(before):
        yield asked
        return

    def remember(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        asked.set()

    signal.signal(signal.SIGINT, remember)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
