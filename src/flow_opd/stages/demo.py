"""The demonstration: merge, distil, evaluate, report, in one run folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flow_opd.config.demo import DemoSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.layout import TRAINING
from flow_opd.runs.launch import join_processes
from flow_opd.runs.training import open_run
from flow_opd.stages import distill
from flow_opd.stages.evaluate import evaluate_into

RUN_PREFIX = "run:"


def run(settings: DemoSettings, *, resume: bool) -> Path:
    """Runs the whole method and returns the run folder."""
    started = time.monotonic()
    folder = open_run(settings.run)
    processes = join_processes(settings.distill.compute)
    place = settings.distill.run.model_copy(update={"out": folder})
    distill.run(settings.distill.model_copy(update={"run": place}), resume=resume, record=settings)
    trained: float = json.loads((folder / TRAINING).read_text())["seconds"]  # over all resumes
    spent = max(trained, time.monotonic() - started)
    evaluation = _here(settings.evaluate, folder)
    return evaluate_into(folder, evaluation, config=settings, resume=resume, processes=processes, spent=spent)


def _here(settings: EvaluateSettings, folder: Path) -> EvaluateSettings:
    """Returns the evaluation with adapters "run:NAME" pointing into the run folder."""
    rows = {
        name: row.model_copy(update={"adapter": str(folder / row.adapter.removeprefix(RUN_PREFIX))})
        if row.adapter is not None and row.adapter.startswith(RUN_PREFIX)
        else row
        for name, row in settings.rows.items()
    }
    return settings.model_copy(update={"rows": rows})
