"""The settings that a run folder keeps of itself, whichever stage wrote them."""

from __future__ import annotations

from pathlib import Path

from flow_opd.config.common import BaseModelSettings
from flow_opd.config.demo import DemoSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.document import load_document
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.merge import MergeSettings
from flow_opd.config.reader import validate
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import ConfigError, explain

CONFIG = "config.yaml"
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
            explain(
                "a run of another kind",
                value=str(folder / CONFIG),
                allowed="a run of demo, distill, evaluate, merge, sft or teacher",
                fix="name the folder of such a run",
            )
        )
    return validate(document, model)


def base_of(settings: Recorded) -> BaseModelSettings:
    """Returns the base of a run."""
    return settings.distill.base if isinstance(settings, DemoSettings) else settings.base
