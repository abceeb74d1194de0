"""Settings of the demonstration: distil, evaluate and report in one go."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from flow_opd.config.base import Problem, StageSettings, refuse
from flow_opd.config.common import PlaceSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings


class DemoSettings(StageSettings):
    """Distils the teachers into a student, evaluates all policies and writes the report."""

    stage: Literal["demo"] = "demo"
    """Stage that the file is for."""
    run: PlaceSettings
    """Run folder and threads of the whole demonstration; seeds are those of distillation and evaluation."""
    distill: DistillSettings
    """The distillation; it writes into the demonstration's folder, whatever its own run.out says."""
    evaluate: EvaluateSettings
    """The evaluation, in the same folder; an adapter 'run:NAME' is the folder NAME in there."""

    @model_validator(mode="after")
    def _one_place(self) -> DemoSettings:
        parts = {"distill": self.distill.run.threads, "evaluate": self.evaluate.run.threads}
        base = self.distill.base
        refuse(
            [
                Problem(
                    ("evaluate", "base", key),
                    f"evaluate.base.{key} is not that of the distillation",
                    getattr(self.evaluate.base, key),
                    repr(getattr(base, key)),
                    "set both to the same value",
                )
                for key in type(base).model_fields
                if getattr(self.evaluate.base, key) != getattr(base, key)
            ]
            + [
                Problem(
                    (part, "run", "threads"),
                    "a setting that would do nothing",
                    threads,
                    "null: the threads are those of the whole demonstration",
                    "set run.threads instead",
                )
                for part, threads in parts.items()
                if threads is not None
            ]
        )
        return self
