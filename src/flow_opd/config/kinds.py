"""Kinds of parts that are chosen by name, and how a name leads to code."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from flow_opd.errors import ConfigError, nearest

CODE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"  # package.module:Name


@dataclass(frozen=True)
class Kind:
    """One kind of parts, and where they are found."""

    what: str  # "reward"
    group: str  # of the entry points by which an installed package adds its own, "flow_opd.rewards"
    own: Mapping[str, str]  # name of one of ours -> "module:attribute"
    method: str  # that a class has, "score"
    takes: int | None  # arguments that a function is called with; None: no function is a part of this kind
    context: tuple[str, ...] = ()  # parameters that a run gives to a part, and no configuration
    unlisted: tuple[str, ...] = ()  # of ours: negative controls, which can be named and are not offered

    def installed(self) -> dict[str, EntryPoint]:
        """Returns name -> entry point of the parts that installed packages add; ours keep their names."""
        found = entry_points(group=self.group)
        return {each.name: each for each in found if each.name not in self.own}

    def names(self) -> list[str]:
        """Returns the names of ours, then of the installed ones."""
        return [*(name for name in self.own if name not in self.unlisted), *sorted(self.installed())]

    def code(self, name: str) -> Any:
        """Returns the class or function that a name leads to.

        Raises:
            ConfigError: if there is none, or its module cannot be imported.
        """
        place = self.own.get(name)
        if place is None and name in (installed := self.installed()):
            place = installed[name].value
        if place is None:
            if re.fullmatch(CODE, name) is None:
                raise ConfigError(
                    f"unknown {self.what}",
                    value=name,
                    allowed=f"{', '.join(map(repr, self.names()))}, or 'package.module:Name'",
                    fix=f"{nearest(name, self.names()).strip()} Use one of these names".strip(),
                )
            place = name
        try:
            found = load(place)
        except AttributeError:
            module, attribute = place.split(":")
            known = [each for each in dir(importlib.import_module(module)) if each[0] != "_"]
            raise ConfigError(
                f"the {self.what} is not in its module",
                value=name,
                allowed=f"what {module} defines",
                fix=f"{nearest(attribute, known).strip()} Correct the name after the colon".strip(),
            ) from None
        except Exception as fault:  # a module that is imported may raise anything
            raise ConfigError(
                f"the {self.what} cannot be imported ({type(fault).__name__}: {fault})",
                value=name,
                allowed="a module that Python can import here, a colon, and a class or function of it",
                fix="correct the name, install its package, or put its folder on PYTHONPATH",
            ) from fault
        if not callable(found):
            raise ConfigError(
                f"the {self.what} is neither a class nor a function",
                value=name,
                allowed="a class, a function, or settings with a method 'build'",
                fix="name one of these",
            )
        return found

    def check(self, name: str, code: Callable[..., Any]) -> None:
        """Refuses code that could not be used as a part of this kind.

        Raises:
            ConfigError: if a class lacks the method, or a function takes other arguments.
        """
        if inspect.isclass(code):
            usable = any(self.method in vars(each) for each in code.__mro__)
        else:
            try:
                usable = self.takes is not None
                inspect.signature(code).bind(*[None] * (self.takes or 0))
            except (TypeError, ValueError):
                usable = False
        if not usable:
            function = "" if self.takes is None else f", or a function of {self.takes} arguments"
            raise ConfigError(
                f"this is no {self.what}",
                value=name,
                allowed=f"a class with a method {self.method!r}{function}; "
                "keyword-only parameters are settings",
                fix="name another, or change its parameters",
            )


def load(place: str) -> Any:
    """Returns what stands at 'module:attribute'."""
    module, attribute = place.split(":")
    return getattr(importlib.import_module(module), attribute)
