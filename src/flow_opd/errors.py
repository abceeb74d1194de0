"""The errors a user can cause, each with a message in four parts.

A message says what is wrong, the value, what is allowed and what to do. Each error also belongs to
a standard-library family, so that a script may catch `ValueError` without knowing this package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlowOPDError(Exception):
    """Base of every error that a user can cause; the command line prints it without a traceback."""

    def __init__(self, what: str, *, value: object = None, allowed: str = "", fix: str = "") -> None:
        """Makes the message of its four parts; or takes one that has been made already.

        Args:
            what: is wrong.
            value: that was given.
            allowed: what would be right; empty where `what` says it all.
            fix: what to do.
        """
        super().__init__(explain(what, value=value, allowed=allowed, fix=fix) if allowed else what)
        self.what, self.value, self.allowed, self.fix = what, value, allowed, fix


class ConfigError(FlowOPDError, ValueError):
    """A configuration that cannot be read, or that asks for something impossible."""


class DataError(FlowOPDError, ValueError):
    """Prompts, images or files with the wrong content."""


class AdapterError(FlowOPDError, ValueError):
    """A LoRA that does not fit its base, its rank or its file."""


class CheckpointError(FlowOPDError, RuntimeError):
    """A checkpoint that is damaged or belongs to another run."""


class RewardError(FlowOPDError, RuntimeError):
    """A reward that failed; it raises and never returns a stand-in number."""


class ProcessError(FlowOPDError, RuntimeError):
    """Another process of the same run has stopped or cannot be reached."""


class NonFiniteError(FlowOPDError, ArithmeticError):
    """A loss or gradient that is not a finite number, seen before the optimizer step."""


def explain(what: str, *, value: object, allowed: str, fix: str) -> str:
    """Returns a message in the four parts: what is wrong, the value, what is allowed, what to do."""
    end = "" if fix.endswith("?") else "."  # where it ends in "Did you mean ...?"
    return f"{what}: {value!r}. Allowed: {allowed}. To fix: {fix}{end}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean ...?' for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
