"""The command line: one sub-command per stage, each of which reads a configuration and runs it.

Nothing heavy is imported before a command runs, so that help answers at once.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from flow_opd.console import told_to_the_user

if TYPE_CHECKING:
    from flow_opd.config.base import Settings

SETTINGS = {
    "miniature": "flow_opd.config.miniature:MiniatureSettings",
    "miniature_prompts": "flow_opd.config.miniature:MiniaturePromptsSettings",
    "teacher": "flow_opd.config.teacher:TeacherSettings",
    "merge": "flow_opd.config.merge:MergeSettings",
    "sft": "flow_opd.config.sft:SFTSettings",
    "distill": "flow_opd.config.distill:DistillSettings",
    "evaluate": "flow_opd.config.evaluate:EvaluateSettings",
    "generate": "flow_opd.config.generate:GenerateSettings",
    "demo": "flow_opd.config.demo:DemoSettings",
    "report": "flow_opd.config.demo:ReportSettings",
}
"""Stage -> its settings model; the stage itself is the module of that name in flow_opd.stages."""
MINIATURE_STAGES = {"build": "miniature", "prompts": "miniature_prompts"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distils several specialist teachers into one flow-matching text-to-image model, on policy.\n\n"
    "Try [bold]flow-opd demo[/bold] first: it runs the whole method on an embedded miniature.",
)
miniature = typer.Typer(no_args_is_help=True, help="Builds the embedded laboratory: models and prompts.")
app.add_typer(miniature, name="miniature")


def main() -> None:
    """Runs the command line."""
    # transformers greets every import without torchvision with hints about image processors.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    app(prog_name="flow-opd")


def _print_keys(context: typer.Context, wanted: bool) -> None:
    """Prints every key that the command's configuration may hold, and ends."""
    if not wanted:
        return
    from flow_opd.config.describe import describe

    console = Console(highlight=False)
    name = context.command.name or ""
    for key in describe(_model(MINIATURE_STAGES.get(name, name))):
        facts = f"{escape(key.type)}  [dim](default: {escape(key.default)})[/dim]"
        console.print(f"[bold]{escape(key.key)}[/bold]  {facts}\n    {escape(key.help)}")
    raise typer.Exit


Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file with the settings, or asset:configs/NAME.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting; repeatable.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; short for --set run.out=...")]
Resume = Annotated[
    bool,
    typer.Option("--resume/--fresh", help="Go on from the newest checkpoint, or start anew."),
]
Check = Annotated[bool, typer.Option("--check", help="Print the resolved settings and end without running.")]
Keys = Annotated[
    bool,
    typer.Option("--keys", help="List all settings with their meaning.", is_eager=True, callback=_print_keys),
]


@miniature.command("build")
def miniature_build(
    config: Config = Path("asset:configs/build.yaml"),
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = True,
    check: Check = False,
    keys: Keys = False,
) -> None:
    """Trains the miniature's VAE, base and reward models from seeds; hours on a CPU, resumable.

    Example: [cyan]flow-opd miniature build --out runs/miniature[/cyan]
    """
    _run("miniature", config, overrides, out, resume=resume, check=check)


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
    _run("miniature_prompts", config, overrides, out, resume=False, check=check)


@app.command()
def teacher(
    config: Config,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = True,
    check: Check = False,
    keys: Keys = False,
) -> None:
    """Trains a specialist: one LoRA on one reward, by Flow-GRPO.

    Example: [cyan]flow-opd teacher asset:configs/teachers/text.yaml --set optimizer.learning_rate=3e-4[/cyan]
    """
    _run("teacher", config, overrides, out, resume=resume, check=check)


@app.command()
def merge(
    config: Config, overrides: Overrides = None, out: Out = None, check: Check = False, keys: Keys = False
) -> None:
    """Merges adapters into one without training, exactly, on their weight changes.

    Example: [cyan]flow-opd merge asset:configs/merge.yaml --set "method={name: svd, rank: 32}"[/cyan]
    """
    _run("merge", config, overrides, out, resume=False, check=check)


@app.command()
def sft(
    config: Config,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = True,
    check: Check = False,
    keys: Keys = False,
) -> None:
    """Trains a first student on images that the teachers draw: the cold start that is not a merge.

    Example: [cyan]flow-opd sft asset:configs/sft.yaml --set images_per_prompt=2[/cyan]
    """
    _run("sft", config, overrides, out, resume=resume, check=check)


@app.command()
def distill(
    config: Config,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = True,
    check: Check = False,
    keys: Keys = False,
) -> None:
    """Distils the teachers into one student, on the student's own trajectories.

    Example: [cyan]flow-opd distill asset:configs/distill.yaml --set anchor.weight=0.04[/cyan]
    """
    _run("distill", config, overrides, out, resume=resume, check=check)


@app.command()
def evaluate(
    config: Config,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = True,
    check: Check = False,
    keys: Keys = False,
) -> None:
    """Draws held-out prompts under every row from the same seeds, scores them and writes results.json.

    Example: [cyan]flow-opd evaluate asset:configs/evaluate.yaml --set num_steps=20 --out runs/table[/cyan]
    """
    _run("evaluate", config, overrides, out, resume=resume, check=check)


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw, each in quotes.")],
    adapter: Annotated[str | None, typer.Option(help="Adapter folder or asset:NAME; none: the base.")] = None,
    base: Annotated[str, typer.Option(help="Pipeline folder, asset:NAME or hub id.")] = "asset:base",
    text_tokens: Annotated[int, typer.Option(help="T5 tokens per prompt; 0 for a base without T5.")] = 0,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 switches it off.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the first image of each prompt.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images.")] = Path("runs/images"),
    overrides: Overrides = None,
    check: Check = False,
    keys: Keys = False,
) -> None:
    """Draws pictures of prompts.

    Example: [cyan]flow-opd generate "two red circles" --adapter runs/demo/adapter --seed 7[/cyan]
    """
    values = {
        "run": {"out": str(out), "seed": seed},
        "base": {"path": base, "max_sequence_length": text_tokens},
        "adapter": adapter,
        "prompts": prompts,
        "guidance_scale": guidance,
    }
    _run("generate", values, overrides, None, resume=False, check=check)


@app.command()
def demo(
    config: Config = Path("asset:configs/demo.yaml"),
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = True,
    check: Check = False,
    keys: Keys = False,
) -> None:
    """Runs the whole method on the miniature: merge, distil, evaluate, report; minutes on two CPU cores.

    Example: [cyan]flow-opd demo --out runs/demo[/cyan]
    """
    _run("demo", config, overrides, out, resume=resume, check=check)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Page to write [RUN/report.html].")] = None,
) -> None:
    """Writes the page of a finished run: table, curves and picture grid, to be opened from disk.

    Example: [cyan]flow-opd report runs/demo[/cyan]
    """
    values = {"folder": str(folder), "out": None if out is None else str(out)}
    _run("report", values, None, None, resume=False, check=False)


def _run(
    stage: str,
    source: Path | Mapping[str, Any],
    overrides: list[str] | None,
    out: Path | None,
    *,
    resume: bool,
    check: bool,
) -> None:
    """Reads the settings from a file or from values, and runs the stage with them."""
    with told_to_the_user():
        folder = [] if out is None else [_out_assignment(out)]
        settings = _settings(stage, source, [*(overrides or []), *folder])
        if check:
            from flow_opd.config.reader import to_yaml

            typer.echo(to_yaml(settings), nl=False)
            return
        result: Path = importlib.import_module(f"flow_opd.stages.{stage}").run(settings, resume=resume)
        Console(highlight=False).print(f"[bold green]done[/bold green]  {escape(str(result))}")


def _settings(stage: str, source: Path | Mapping[str, Any], overrides: list[str]) -> Settings:
    from flow_opd.config.locations import ASSET, locate
    from flow_opd.config.reader import from_values, read

    if isinstance(source, Path):
        file = locate(source, key="CONFIG") if str(source).startswith(ASSET) else source
        return read(file, _model(stage), overrides)
    return from_values(source, _model(stage), overrides)


def _model(stage: str) -> type[Settings]:
    module, name = SETTINGS[stage].split(":")
    model: type[Settings] = getattr(importlib.import_module(module), name)
    return model


def _out_assignment(out: Path) -> str:
    # In quotes, since a folder may be called 2026 or null.
    quoted = str(out).replace("'", "''")
    return f"run.out='{quoted}'"
