"""The command line: one sub-command per stage, each of which reads a configuration and runs it.

Nothing heavy is imported before a command runs, so that help answers at once.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from flow_opd.cli.common import (
    Check,
    Config,
    Keys,
    Out,
    Overrides,
    StageCommand,
    add_stage,
    done,
    prepared,
    user_errors,
)
from flow_opd.cli.options import card, export, generate, plan, publish, report, schema
from flow_opd.cli.prompts import prompts as prompts_app
from flow_opd.quiet import silence_imports


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("flow-opd"))
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distils several specialist teachers into one flow-matching text-to-image model, on policy.\n\n"
    "Try [bold]flow-opd demo[/bold] first: it runs the whole method on an embedded miniature.",
)
miniature = typer.Typer(no_args_is_help=True, help="Builds the embedded miniature: models and prompts.")
app.add_typer(miniature, name="miniature")
app.add_typer(prompts_app, name="prompts")


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end."),
    ] = False,
) -> None:
    pass  # the help of the application stays what it says above


def main() -> None:
    """Runs the command line."""
    silence_imports()
    app(prog_name="flow-opd")


add_stage(
    miniature,
    "miniature",
    "Trains the miniature's VAE, base and reward models from seeds; hours on a CPU, resumable.",
    "flow-opd miniature build --out runs/miniature",
    name="build",
    default="asset:configs/build.yaml",
)


@miniature.command("prompts")
def miniature_prompts(
    config: Config = Path("asset:configs/prompts.yaml"),
    overrides: Overrides = None,
    out: Out = None,
    check: Check = False,
    keys: Keys = False,
) -> None:
    """Writes training and held-out prompts of the miniature's four domains as jsonl.

    Example: [cyan]flow-opd miniature prompts --out data/prompts[/cyan]
    """
    with user_errors():
        done(prepared("miniature_prompts", config, overrides, out, check=check)())


add_stage(
    app,
    "teacher",
    "Trains a teacher by Flow-GRPO: one LoRA on its reward, or on those of several tasks (GRPO-Mix).",
    "flow-opd teacher asset:configs/teachers/text.yaml --set optimizer.learning_rate=3e-4",
)


@app.command(cls=StageCommand)
def merge(
    config: Config, overrides: Overrides = None, out: Out = None, check: Check = False, keys: Keys = False
) -> None:
    """Merges adapters into one without training, exactly, on their weight changes.

    Example: [cyan]flow-opd merge asset:configs/merge.yaml --set "method={name: svd, rank: 32}"[/cyan]
    """
    with user_errors():
        done(prepared("merge", config, overrides, out, check=check)())


add_stage(
    app,
    "sft",
    "Trains a first student on images that the teachers draw: the cold start that is not a merge.",
    "flow-opd sft asset:configs/sft.yaml --set images_per_prompt=2",
)
add_stage(
    app,
    "distill",
    "Distils the teachers into one student, on the student's own trajectories.",
    "flow-opd distill asset:configs/distill.yaml --set anchor.weight=0.04",
)
add_stage(
    app,
    "evaluate",
    "Draws held-out prompts under every row from the same seeds, scores them and writes results.json.",
    "flow-opd evaluate asset:configs/evaluate.yaml --set num_steps=20 --out runs/table",
)
add_stage(
    app,
    "demo",
    "Runs the whole method on the miniature: merge, distil, evaluate, report; minutes on two CPU cores.",
    "flow-opd demo --out runs/demo",
    default="asset:configs/demo.yaml",
)
for command in (generate, report, export, card, publish, plan, schema):
    app.command()(command)
