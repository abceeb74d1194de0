"""The commands `flow-opd prompts ...`: make new prompt files, check old ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flow_opd.cli.common import user_errors

prompts = typer.Typer(no_args_is_help=True, help="Makes new prompt files and checks old ones.")

N = Annotated[int, typer.Option("--n", help="Prompts to write.")]
Seed = Annotated[int, typer.Option(help="The same seed writes the same file.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE", help="Prompt file, such as a test set, whose prompts are left out; repeatable."
    ),
]


@prompts.command("geneval")
def geneval(
    n: N,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path(
        "runs/prompts/geneval.jsonl"
    ),
    exclude: Exclude = None,
    task: Annotated[
        str, typer.Option(help="Task of the prompts; {tag} in it stands for the GenEval tag.")
    ] = "composition",
    share: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG=NUMBER",
            help="Share of a tag; repeatable. Default: position 7, counting 5, color_attr 3, colors 1, "
            "two_object 1, single_object 0, as Flow-GRPO.",
        ),
    ] = None,
) -> None:
    """Writes new composition prompts with GenEval's metadata, no picture asked for twice.

    Example: [cyan]flow-opd prompts geneval --n 5000 --seed 1 --exclude evaluation_metadata.jsonl[/cyan]
    """
    values = {"n": n, "seed": seed, "out": str(out), "exclude": exclude or [], "task": task}
    with user_errors():
        from flow_opd.config.file.document import parse_value
        from flow_opd.config.file.reader import from_values
        from flow_opd.config.prompts import GenEvalPromptsSettings
        from flow_opd.stages.prompts import write_geneval

        parts = [one.partition("=") for one in share or []]
        shares = {tag.strip(): parse_value(number, "--share") for tag, _, number in parts}
        _done(write_geneval(from_values({**values, "shares": shares}, GenEvalPromptsSettings)))


@prompts.command("ocr")
def ocr(
    n: N,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("runs/prompts/ocr.jsonl"),
    exclude: Exclude = None,
    task: Annotated[str, typer.Option(help="Task of the prompts.")] = "text",
    min_words: Annotated[int, typer.Option(help="Words of the shortest text.")] = 1,
    max_words: Annotated[
        int, typer.Option(help="Words of the longest text, up to 6; lengths take turns.")
    ] = 6,
) -> None:
    """Writes new prompts that quote words to be drawn on signs, labels and screens.

    Example: [cyan]flow-opd prompts ocr --n 5000 --seed 1 --max-words 3 --out data/ocr.jsonl[/cyan]
    """
    values = {"n": n, "seed": seed, "out": str(out), "exclude": exclude or [], "task": task}
    with user_errors():
        from flow_opd.config.file.reader import from_values
        from flow_opd.config.prompts import OCRPromptsSettings
        from flow_opd.stages.prompts import write_ocr

        lengths = {"min_words": min_words, "max_words": max_words}
        _done(write_ocr(from_values({**values, **lengths}, OCRPromptsSettings)))


@prompts.command("check")
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Prompt files, .txt or jsonl.")],
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="File that may share no prompt with these; repeatable."),
    ] = None,
    repeats: Annotated[bool, typer.Option(help="Let a file hold a prompt several times.")] = False,
) -> None:
    """Reads prompt files and refuses prompts that come twice, or in the test set too, by line.

    Example: [cyan]flow-opd prompts check train.jsonl --against evaluation_metadata.jsonl[/cyan]
    """
    values = {"files": files, "against": against or [], "repeats": repeats}
    with user_errors():
        from flow_opd.config.file.reader import from_values
        from flow_opd.config.prompts import CheckPromptsSettings
        from flow_opd.stages.prompts import check_files

        check_files(from_values(values, CheckPromptsSettings))


def _done(file: Path) -> None:
    Console(highlight=False).print(f"[bold green]done[/bold green]  {escape(str(file))}")
