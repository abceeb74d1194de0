"""The command `flow-opd plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flow_opd.cli.common import config_file, uncollected
from flow_opd.console import user_errors


def plan(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="YAML file of distill or teacher, or asset:configs/NAME.yaml."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    utilisation: Annotated[
        float, typer.Option(help="Share of a card's peak rate that the run reaches, 0 to 1.")
    ] = 0.35,
    processes: Annotated[int, typer.Option(help="Processes, one to a card, that share a round.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting; repeatable.")
    ] = None,
) -> None:
    """Says what a training will need, without weights or card: memory, FLOPs, hours, and what to change.

    Example: [cyan]flow-opd plan asset:configs/distill.yaml --set micro_batch_size=8 --processes 8[/cyan]
    """
    with user_errors():
        from flow_opd.config.file.reader import from_values
        from flow_opd.config.options import PlanSettings

        with uncollected():
            from flow_opd.stages.plan import run

        assumed = from_values({"utilisation": utilisation, "processes": processes}, PlanSettings)
        run(config_file(config), overrides or [], assumed, as_json=as_json)
