"""What the commands share: their options, and the way from words to a stage that runs."""

from __future__ import annotations

import gc
import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from flow_opd.config.stages import COMMANDS, STAGES, of_stage, settings_of
from flow_opd.errors import FlowOPDError, explain

if TYPE_CHECKING:
    from flow_opd.config.base import Settings


MODULES = {"miniature": "miniature.build", "miniature_prompts": "miniature.prompts"}
"""Stages whose module in flow_opd.stages has another name."""
MINIATURE_STAGES = {command.split()[1]: stage for stage, command in COMMANDS.items()}
USER_ERROR, INTERRUPTED, READER_GONE = 2, 130, 141  # the last two as a shell counts signals
GIVEN = "flow_opd.config"  # key of a command's notes
PLAIN_KEY = re.compile(r"[a-z0-9_.]+")  # no place in a list, no name of one's own, no choice


def _print_keys(context: typer.Context, wanted: bool) -> None:
    """Prints every key that the command's configuration may hold, and ends.

    A configuration that stands before it adds the settings of the parts that it names as package.module:Name.
    """
    if not wanted:
        return
    from flow_opd.config.file.keys import describe
    from flow_opd.config.versions import parts_of

    console = Console(highlight=False)
    name = context.command.name or ""
    stage = MINIATURE_STAGES.get(name, name)
    given, overrides = context.meta.get(GIVEN, (None, []))
    with user_errors():
        also = list(parts_of(_settings(stage, Path(given), overrides))) if given else []
    for key in describe(settings_of(stage), also=also):
        facts = f"{escape(key.type)}  [dim](default: {escape(key.default)})[/dim]"
        console.print(f"[bold]{escape(key.key)}[/bold]  {facts}\n    {escape(key.help)}")
    raise typer.Exit


def _complete_keys(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Returns the keys that may follow --set, with their help, for the shell's completion."""
    from flow_opd.config.file.keys import describe

    name = context.command.name or ""
    stage = MINIATURE_STAGES.get(name, name)
    if stage not in STAGES:
        return []
    return [
        (f"{key.key}=", key.help)
        for key in describe(settings_of(stage))
        if key.key.startswith(incomplete) and key.default != "see below" and PLAIN_KEY.fullmatch(key.key)
    ]


Config = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file with the settings, or asset:configs/NAME.yaml.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Overrides a setting; repeatable.", autocompletion=_complete_keys
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; short for --set run.out=...")]
Resume = Annotated[
    bool,
    typer.Option("--resume/--fresh", help="Go on from the newest checkpoint, or start again."),
]
Check = Annotated[bool, typer.Option("--check", help="Print the resolved settings and end without running.")]
Keys = Annotated[
    bool,
    typer.Option(
        "--keys",
        help="List all settings with their meaning; beside a CONFIG, also those of the parts that it names.",
        is_eager=True,
        callback=_print_keys,
    ),
]


@contextmanager
def uncollected() -> Iterator[None]:
    """Keeps the garbage collector away from what is made inside, now and later.

    Modules stay until the end. The collector goes through all that the libraries have made again and again
    while they are imported, and once more whenever it looks at everything afterwards.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def prepared(
    stage: str,
    source: Path | Mapping[str, Any],
    overrides: list[str] | None,
    out: Path | None,
    *,
    check: bool,
) -> Callable[..., Path]:
    """Reads the settings of a stage from a file or from values, and returns what runs it with them.

    With `check` the settings are printed, and the program ends.
    """
    folder = [] if out is None else [_out_assignment(out)]
    settings = _settings(stage, source, [*(overrides or []), *folder])
    if check:
        from flow_opd.config.file.reader import to_yaml

        typer.echo(to_yaml(settings), nl=False)
        raise typer.Exit
    with uncollected():
        module = importlib.import_module(f"flow_opd.stages.{MODULES.get(stage, stage)}")
    return partial(module.run, settings)


def done(result: Path) -> None:
    """Says where the result is."""
    from flow_opd.processes import is_first_launched  # here, as it takes torch along

    if is_first_launched():
        Console(highlight=False).print(f"[bold green]done[/bold green]  {escape(str(result))}")


class StageCommand(TyperCommand):
    """A command whose `--keys` knows the configuration that was named beside it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Returns what is left of the words; options are evaluated before arguments, so notes the latter."""
        given = self.make_parser(ctx).parse_args(list(args))[0]
        ctx.meta[GIVEN] = given.get("config"), given.get("overrides") or []
        return super().parse_args(ctx, args)


def add_stage(
    app: typer.Typer, stage: str, text: str, example: str, *, name: str | None = None, default: str = ""
) -> None:
    """Adds the command of a stage that goes on where it was killed, and whose settings are a file.

    Args:
        app: that gets the command.
        stage: of `config.stages.STAGES`.
        text: what the command does.
        example: of it.
        name: of the command, if it is not that of the stage.
        default: file that is read where none is named.
    """

    def command(
        config: Config,
        overrides: Overrides = None,
        out: Out = None,
        resume: Resume = True,
        check: Check = False,
        keys: Keys = False,
    ) -> None:
        with user_errors():
            run = prepared(stage, config, overrides, out, check=check)
            done(run(resume=resume))

    if default:
        command.__defaults__ = (Path(default), *(command.__defaults__ or ()))
    app.command(name or stage, cls=StageCommand, help=f"{text}\n\nExample: [cyan]{example}[/cyan]")(command)


def _settings(stage: str, source: Path | Mapping[str, Any], overrides: list[str]) -> Settings:
    from flow_opd.config.file.reader import plain_values, read_document

    if isinstance(source, Path):
        return of_stage(read_document(config_file(source), overrides), stage)
    return of_stage(plain_values(source, overrides), stage)


def config_file(name: Path) -> Path:
    """Returns the file that a CONFIG names; "asset:NAME" is one of the package.

    Raises:
        ConfigError: if there is no such asset.
    """
    from flow_opd.config.locations import ASSET, locate

    return locate(name, key="CONFIG") if str(name).startswith(ASSET) else name


def _out_assignment(out: Path) -> str:
    # In quotes, since a folder may be called 2026 or null.
    quoted = str(out).replace("'", "''")
    return f"run.out='{quoted}'"


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with a message for what a user can cause; everything else is a bug and may crash."""
    try:
        yield
    except FlowOPDError as error:
        complain(str(error))
        raise typer.Exit(USER_ERROR) from None
    except BrokenPipeError:  # what reads the output has seen enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(READER_GONE) from None
    except OSError as error:
        complain(
            explain(
                f"cannot read or write ({error.strerror or error})",
                value=str(error.filename or "unnamed file"),
                allowed="paths that exist, with permission and free space",
                fix="correct the path, its permissions or the disk, then run the same command again",
            )
        )
        raise typer.Exit(USER_ERROR) from None
    except KeyboardInterrupt:
        again = shlex.join(["flow-opd", *(word for word in sys.argv[1:] if word != "--fresh")])
        complain(f"interrupted. A training goes on from its newest checkpoint with: {again}", style="yellow")
        raise typer.Exit(INTERRUPTED) from None


def complain(message: str, *, style: str = "red") -> None:
    """Prints `message` to stderr, unwrapped, so that paths in it can be copied."""
    sys.stdout.flush()
    Console(stderr=True, highlight=False, soft_wrap=True).print(escape(message), style=style)
