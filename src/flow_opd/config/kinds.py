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
    context: tuple[str, ...] = ()  # parameters that a run gives to a class, and no configuration
    unlisted: tuple[str, ...] = ()  # of ours: negative controls, which can be named and are not offered

    def installed(self) -> dict[str, list[EntryPoint]]:
        """Returns name -> entry points of the parts that installed packages add; ours keep their names."""
        found: dict[str, list[EntryPoint]] = {}
        for each in entry_points(group=self.group):
            known = [one.value for one in found.get(each.name, [])]
            if each.name not in self.own and each.value not in known:
                found.setdefault(each.name, []).append(each)
        return found

    def names(self) -> list[str]:
        """Returns the names of ours, then of the installed ones."""
        return [*(name for name in self.own if name not in self.unlisted), *sorted(self.installed())]

    def place(self, name: str) -> str:
        """Returns "module:attribute" of the code that a name leads to.

        Raises:
            ConfigError: if there is none, or two installed packages have one each.
        """
        if name in self.own:
            return self.own[name]
        added = self.installed().get(name, [])
        if len(added) > 1:
            raise ConfigError(
                f"two installed packages have a {self.what} of this name",
                value=name,
                allowed=" or ".join(each.value for each in added),
                fix="name the one that is meant by its place",
            )
        if added:
            return f"{added[0].module}:{added[0].attr}"
        if re.fullmatch(CODE, name) is None:
            hint = nearest(name, self.names()).strip()
            raise ConfigError(
                f"unknown {self.what}",
                value=name,
                allowed=f"{', '.join(map(repr, self.names()))}, or 'package.module:Name'",
                fix=f"{hint} Use one of these names, or install the package that adds it".strip(),
            )
        return name

    def code(self, name: str) -> Any:
        """Returns the class or function that a name leads to.

        Raises:
            ConfigError: if there is none, or its module cannot be imported.
        """
        module, _, attribute = self.place(name).partition(":")
        try:
            found: Any = importlib.import_module(module)
        except (Exception, SystemExit) as fault:  # a module that is imported may raise anything
            raise ConfigError(
                f"the {self.what} cannot be imported ({type(fault).__name__}: {fault})",
                value=name,
                allowed="a module that Python can import here, a colon, and a class or function of it",
                fix="correct the name, install its package, or put its folder on PYTHONPATH",
            ) from fault
        known = [each for each in dir(found) if each[0] != "_"]
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise ConfigError(
                f"the {self.what} is not in its module",
                value=name,
                allowed=f"what {module} defines",
                fix=f"{nearest(attribute, known).strip()} Correct the name after the colon".strip(),
            )
        if not (inspect.isclass(found) or inspect.isroutine(found)):
            raise ConfigError(
                f"the {self.what} is neither a class nor a function",
                value=name,
                allowed="a class, a function, or settings with a method 'build'",
                fix="name one of these; what is an object already may be given in Python",
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
                parameters = inspect.signature(code).parameters.values()
                settings = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
                inspect.signature(code).bind(*[None] * (self.takes or 0), **settings)
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
    """Returns what stands at 'module:attribute', of ours."""
    module, attribute = place.split(":")
    return getattr(importlib.import_module(module), attribute)
