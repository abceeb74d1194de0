"""What the command line says when something ends early: a message and an exit code, no traceback."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from flow_opd.errors import FlowOPDError, explain

USER_ERROR, INTERRUPTED, READER_GONE = 2, 130, 141  # the last two as a shell counts signals


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
