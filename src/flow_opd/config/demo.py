"""Settings of the demonstration: distil, evaluate and report in one go."""

from __future__ import annotations

from pathlib import Path

from flow_opd.config.base import PositiveInt, Settings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings


class DemoRunSettings(Settings):
    """Where the results go; the seeds are those of the distillation and of the evaluation."""

    out: Path
    """Run folder; it is made if absent."""
    threads: PositiveInt | None = None
    """Processor threads; null takes all cores."""


class DemoSettings(Settings):
    """Distils the teachers into a student, evaluates everybody and writes the report."""

    run: DemoRunSettings
    """Run folder and processor threads of the whole demonstration."""
    distill: DistillSettings
    """The distillation; it writes into the demonstration's folder, whatever its own run.out says."""
    evaluate: EvaluateSettings
    """The evaluation, in the same folder; an adapter 'run:NAME' is the folder NAME in there."""


class ReportSettings(Settings):
    """Turns a finished run folder into a page that opens from disk."""

    folder: Path
    """Run folder with results.json and metrics.jsonl."""
    out: Path | None = None
    """The page; null writes report.html into the run folder."""
