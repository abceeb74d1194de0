"""The configuration that a run folder has recorded, and where another one differs from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from flow_opd.config.base import Settings
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.demo import DemoSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.document import load_document
from flow_opd.config.merge import MergeSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.config.stages import of_stage
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import ConfigError
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


SHOWN = 5

# Settings that change memory, speed or safety, and no number: they may be lowered after a crash.
HARMLESS = {
    *("checkpoint", "micro_batch_size", "sample_batch_size"),
    *("compute", "embeddings", "base.offline", "run.out", "run.threads"),
}


def differences(recorded: Path, settings: Settings, *, but: Collection[str] = ()) -> list[str]:
    """Returns "key: value, now value" for the first keys that are not as in a config.yaml, if any.

    Args:
        recorded: the config.yaml.
        settings: what is compared with it.
        but: keys that may differ, with all below them.
    """
    try:
        before = load_document(recorded).data
    except (ConfigError, OSError):
        return []
    found = list(_compared("", before, settings.model_dump(mode="json"), but))
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [*found[:SHOWN], *more]


def _compared(key: str, before: Any, now: Any, but: Collection[str]) -> Iterator[str]:
    if key in but:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            inside = f"{key}.{name}" if key else str(name)
            yield from _compared(inside, before.get(name), now.get(name), but)
    elif before != now:
        yield f"{key}: {before}, now {now}"
