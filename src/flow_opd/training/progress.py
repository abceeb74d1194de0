"""A progress bar that says what is being learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


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
            TextColumn("{task.fields[reading]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total_steps, completed=done, reading="")
        self.bar.start()

    def on_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Advances the bar."""
        reading = "  ".join(f"{name} {metrics[name]:.4g}" for name in self.show if name in metrics)
        self.bar.update(self.task, completed=step, reading=reading)
        due = step // self.every > self.done // self.every or step == self.total
        self.done = step
        if not self.console.is_terminal and due:
            self.console.print(f"{self.title}: step {step}/{self.total}  {reading}", highlight=False)

    def rename(self, title: str) -> None:
        """Says from now on that `title` is worked on."""
        self.title = title
        self.bar.update(self.task, description=title)

    def on_end(self) -> None:
        """Leaves the finished bar on the screen."""
        self.bar.stop()
