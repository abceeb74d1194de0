"""The configuration that a run folder has recorded, and where another one differs from it."""

from __future__ import annotations

from pathlib import Path

from flow_opd.config.common import BaseModelSettings
from flow_opd.config.demo import DemoSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.document import load_document
from flow_opd.config.file.reader import validate
from flow_opd.config.merge import MergeSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import ConfigError
from flow_opd.layout import CONFIG

Recorded = DemoSettings | DistillSettings | EvaluateSettings | MergeSettings | SFTSettings | TeacherSettings

# A key of this stage that none of the later ones has.
_OWN_KEY: dict[str, type[Recorded]] = {
    "distill": DemoSettings,
    "images_per_prompt": SFTSettings,
    "teachers": DistillSettings,
    "rows": EvaluateSettings,
    "adapters": MergeSettings,
    "group_size": TeacherSettings,
}


def recorded(folder: Path) -> Recorded:
    """Returns the settings in the config.yaml of a run folder.

    Raises:
        ConfigError: if there is none, or it is of no stage that leaves an adapter or results.
    """
    document = load_document(folder / CONFIG)
    model = next((each for key, each in _OWN_KEY.items() if key in document.data), None)
    if model is None:
        raise ConfigError(
            "a run of another kind",
            value=str(folder / CONFIG),
            allowed="a run of demo, distill, evaluate, merge, sft or teacher",
            fix="name the folder of such a run",
        )
    return validate(document, model)


def base_of(settings: Recorded) -> BaseModelSettings:
    """Returns the base of a run."""
    return settings.distill.base if isinstance(settings, DemoSettings) else settings.base


# Settings that change memory, speed or safety, and no number: they may be lowered after a crash.
HARMLESS = {
    *("checkpoint", "micro_batch_size", "sample_batch_size"),
    *("compute", "embeddings", "base.offline", "run.out", "run.threads"),
}
