"""The stages by their names, and whose settings a file holds: its key `stage` says it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from flow_opd.errors import ConfigError, nearest

if TYPE_CHECKING:  # the command line names the stages before it needs pydantic
    from flow_opd.config.base import StageSettings
    from flow_opd.config.file.document import Document

STAGES = {
    "miniature": "flow_opd.config.miniature:MiniatureSettings",
    "miniature_prompts": "flow_opd.config.miniature:MiniaturePromptsSettings",
    "teacher": "flow_opd.config.teacher:TeacherSettings",
    "merge": "flow_opd.config.merge:MergeSettings",
    "sft": "flow_opd.config.sft:SFTSettings",
    "distill": "flow_opd.config.distill:DistillSettings",
    "evaluate": "flow_opd.config.evaluate:EvaluateSettings",
    "generate": "flow_opd.config.options:GenerateSettings",
    "demo": "flow_opd.config.demo:DemoSettings",
    "report": "flow_opd.config.options:ReportSettings",
    "export": "flow_opd.config.options:ExportSettings",
    "card": "flow_opd.config.options:CardSettings",
    "publish": "flow_opd.config.options:PublishSettings",
}
"""Stage -> its settings."""
COMMANDS = {"miniature": "miniature build", "miniature_prompts": "miniature prompts"}
"""Commands that have not the name of their stage."""
STAGE = "stage"


def settings_of(stage: str) -> type[StageSettings]:
    """Returns the settings model of a stage."""
    module, name = STAGES[stage].split(":")
    model: type[StageSettings] = getattr(importlib.import_module(module), name)
    return model


def of_stage(document: Document, *stages: str) -> StageSettings:
    """Returns the settings that a document holds.

    Args:
        document: says its stage; it need not where it can be of one alone.
        stages: of which it may be.

    Raises:
        ConfigError: if it is of another stage or does not say of which, or with the place of every problem
            in it.
    """
    from flow_opd.config.file.reader import validate

    said = document.data.get(STAGE, stages[0] if len(stages) == 1 else None)
    if said in stages:
        return validate(document, settings_of(said))
    allowed = " or ".join(map(repr, stages))
    if said is None:
        fix = f"write the stage that it is for into it, such as '{STAGE}: {stages[0]}'"
        raise ConfigError(f"missing key '{STAGE}' in {document.name}", value=None, allowed=allowed, fix=fix)
    if said in list(STAGES):
        command = COMMANDS.get(said, said)
        fix = f"`flow-opd {command} {document.name}` is its command; or give the file of another stage"
    else:
        fix = f"{nearest(str(said), STAGES).strip()} Correct the stage".strip()
    raise ConfigError(
        f"settings of another stage in {document.place((STAGE,))}", value=said, allowed=allowed, fix=fix
    )
