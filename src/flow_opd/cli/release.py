"""The commands that hand an adapter on: export, card, publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flow_opd.cli.common import Check, Keys, Overrides, done, prepared
from flow_opd.console import user_errors

Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Run folder, or an adapter: a path, asset:NAME or hub id.")
]
Repo = Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Repository of the hub.")]


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
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a distillation, demo or evaluation.")],
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
        done(prepared("publish", values, None, None, check=False)())
