"""Settings of `plan` beyond the configuration that it plans, and which configurations it understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flow_opd.config.base import PositiveInt, Settings
from flow_opd.config.demo import DemoSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.document import load_document
from flow_opd.config.file.overrides import override
from flow_opd.config.file.reader import validate
from flow_opd.config.merge import MergeSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import ConfigError

TrainingSettings = DistillSettings | TeacherSettings
_STAGES: tuple[type[Settings], ...] = (
    DistillSettings,
    TeacherSettings,
    SFTSettings,
    EvaluateSettings,
    MergeSettings,
    DemoSettings,
)
"""What a configuration may be of; where two fit equally well, the first."""


class PlanSettings(Settings):
    """Assumptions of a plan that no training configuration holds."""

    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Share of a card's peak rate that the whole run reaches, recomputation counted as work."""
    processes: PositiveInt = 1
    """Processes, one to a card, that share the rows of an update."""


def read_training(path: str | Path, overrides: Sequence[str] = ()) -> TrainingSettings:
    """Returns the settings of a distillation or of a Flow-GRPO teacher, whichever the file holds.

    Raises:
        ConfigError: if it is neither, or something in it is wrong.
    """
    document = override(load_document(path), overrides)
    return validate(document, _kind(document.data, document.name))


def _kind(data: Mapping[str, Any], name: str) -> type[DistillSettings] | type[TeacherSettings]:
    """Returns the stage whose keys are those of a document; a key with a typo does not hide it."""
    keys = set(data)
    found = max(
        _STAGES, key=lambda model: len(keys & set(model.model_fields)) - len(set(_required(model)) - keys)
    )
    if found in (DistillSettings, TeacherSettings):
        return found
    raise ConfigError(
        f"{name} is no training that can be planned",
        value=sorted(data),
        allowed="a distillation or a Flow-GRPO teacher",
        fix="give the configuration of `flow-opd distill` or `flow-opd teacher`",
    )


def _required(model: type[Settings]) -> list[str]:
    return [key for key, field in model.model_fields.items() if field.is_required()]
