"""metrics.jsonl: one line per optimizer step, without gaps or repeats across resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from flow_opd.files import write_text


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
        kept: list[str] = []
        if path.exists() and resume_step:
            for line in path.read_text().splitlines():
                try:
                    step = json.loads(line)["step"]
                except ValueError:  # the line that a kill cut in two
                    break
                if step <= resume_step:
                    kept.append(line)
        self._offset = float(json.loads(kept[-1])["time"]) if kept else 0.0
        self._started = time.monotonic()
        write_text(path, "".join(line + "\n" for line in kept))

    def on_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line."""
        if step % self.every:
            return
        seconds = round(self._offset + time.monotonic() - self._started, 3)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "time": seconds, **metrics}) + "\n")

    def on_end(self) -> None:
        """Nothing is buffered."""
