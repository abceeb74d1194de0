"""The configuration that a run folder has recorded, and where another one differs from it."""

from __future__ import annotations

from pathlib import Path

from flow_opd.config.common import BaseModelSettings
from flow_opd.config.demo import DemoSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.document import load_document
from flow_opd.config.merge import MergeSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.config.stages import of_stage
from flow_opd.config.teacher import TeacherSettings
from flow_opd.layout import CONFIG

Recorded = DemoSettings | DistillSettings | EvaluateSettings | MergeSettings | SFTSettings | TeacherSettings


def recorded(folder: Path) -> Recorded:
    """Returns the settings in the config.yaml of a run folder.

    Raises:
        ConfigError: if there is none, or it is of no stage that leaves an adapter or results.
    """
    document = load_document(folder / CONFIG)
    found = of_stage(document, "demo", "distill", "evaluate", "merge", "sft", "teacher")
    assert isinstance(found, Recorded)
    return found


def base_of(settings: Recorded) -> BaseModelSettings:
    """Returns the base of a run."""
    return settings.distill.base if isinstance(settings, DemoSettings) else settings.base


# Settings that change memory, speed or safety, and no number: they may be lowered after a crash.
HARMLESS = {
    *("checkpoint", "micro_batch_size", "sample_batch_size"),
    *("compute", "embeddings", "base.offline", "run.out", "run.threads"),
}
