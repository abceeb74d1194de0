"""The command `flow-opd schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flow_opd.config.stages import STAGES, settings_of
from flow_opd.console import user_errors


def _complete_stages(incomplete: str) -> list[str]:
    return [stage for stage in STAGES if stage.startswith(incomplete)]


def schema(
    stage: Annotated[
        str | None,
        typer.Argument(
            metavar="[STAGE]", help="Stage of the settings; none: all.", autocompletion=_complete_stages
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder that gets a file STAGE.json for each.")
    ] = None,
) -> None:
    """Prints or writes JSON schemas, by which an editor completes and checks a YAML file.

    Example: [cyan]flow-opd schema --out schemas[/cyan]
    """
    with user_errors():
        from flow_opd.config.json_schema import json_schema
        from flow_opd.errors import ConfigError, nearest
        from flow_opd.files import write_text

        if stage is not None and stage not in STAGES:
            raise ConfigError(
                "no such stage",
                value=stage,
                allowed=", ".join(STAGES),
                fix=f"{nearest(stage, STAGES).strip()} Name a stage, or none for all".strip(),
            )
        made = {name: json_schema(settings_of(name), name) for name in ([stage] if stage else STAGES)}
        if out is None:
            typer.echo(json.dumps(made[stage] if stage else made, indent=2))
            return
        for name, content in made.items():
            write_text(out / f"{name}.json", json.dumps(content, indent=1) + "\n")
            typer.echo(out / f"{name}.json")
