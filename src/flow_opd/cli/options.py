"""Commands that take options in place of a file: generate, report, export, card, publish, plan, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flow_opd.cli.common import Check, Keys, Overrides, config_file, done, prepared, uncollected, user_errors
from flow_opd.config.stages import STAGES, settings_of

Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Run folder, or an adapter: a path, asset:NAME or hub id.")
]
Repo = Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Repository of the hub.")]


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw, each in quotes.")],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter: path, asset:NAME or hub id; none: the base.")
    ] = None,
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
    with user_errors():
        done(prepared("generate", values, overrides, None, check=check)())


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Page to write [RUN/report.html].")] = None,
) -> None:
    """Writes the page of a finished run: table, curves and picture grid, to be opened from disk.

    Example: [cyan]flow-opd report runs/demo[/cyan]
    """
    values = {"folder": str(folder), "out": None if out is None else str(out)}
    with user_errors():
        done(prepared("report", values, None, None, check=False)())


def export(
    run: Run,
    format_: Annotated[str, typer.Option("--format", help="peft, diffusers or comfyui.")] = "diffusers",
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the files.")] = Path("export"),
    base: Annotated[
        str | None, typer.Option(help="Base to check on: folder, asset:NAME or hub id (the run's own).")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Alpha of a LoRA file that does not say it.")] = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Also write the transformer with the adapter fused in.")
    ] = False,
    overrides: Overrides = None,
    check: Check = False,
    keys: Keys = False,
) -> None:
    """Writes an adapter for PEFT, diffusers or ComfyUI; it is kept only if it loads to the same velocities.

    Example: [cyan]flow-opd export runs/demo --format comfyui --out exports/comfyui[/cyan]
    """
    tokens = 0 if base is None or base.startswith("asset:") else 128  # any value: no prompt is read
    values = {
        "source": run,
        "format": format_,
        "out": str(out),
        "base": None if base is None else {"path": base, "max_sequence_length": tokens},
        "alpha": alpha,
        "fused": fused,
    }
    with user_errors():
        done(prepared("export", values, overrides, None, check=check)())


def card(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a teacher, distillation, demo or evaluation.")
    ],
    repo: Repo = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Licence (the base's, where it is known).")
    ] = None,
) -> None:
    """Writes the model card, README.md, beside the adapter of a run.

    Example: [cyan]flow-opd card runs/demo --repo owner/name[/cyan]
    """
    values = {"folder": str(run), "repo": repo, "license": license_}
    with user_errors():
        done(prepared("card", values, None, None, check=False)())


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or adapter folder with a card.")],
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Repository of the hub.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded, and end.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Uploads an adapter and its card to the Hugging Face hub.

    Example: [cyan]flow-opd publish runs/demo --repo owner/name --dry-run[/cyan]
    """
    values = {"folder": str(run), "repo": repo, "dry_run": dry_run, "private": private}
    with user_errors():
        folder = prepared("publish", values, None, None, check=False)()
        if not dry_run:  # which has said all there is
            done(folder)


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
