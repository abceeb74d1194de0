"""Settings of the demonstration: distil, evaluate and report in one go."""

from __future__ import annotations

from pathlib import Path

from flow_opd.config.base import Settings
from flow_opd.config.common import RunSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings


class DemoSettings(Settings):
    """Distils the teachers into a student, evaluates everybody and writes the report."""

    run: RunSettings
    """Run folder of the whole demonstration; the parts write below it."""
    distill: DistillSettings
    """The distillation; its run.out is relative to the demonstration's."""
    evaluate: EvaluateSettings
    """The evaluation; its run.out is relative to the demonstration's."""


class ReportSettings(Settings):
    """Turns a finished run folder into a page that opens from disk."""

    folder: Path
    """Run folder with results.json and metrics.jsonl."""
    out: Path | None = None
    """The page; null writes report.html into the run folder."""
