"""The settings of a class or function, by its parameters."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

from pydantic import BaseModel, Field
from pydantic_core import PydanticUndefined

from flow_opd.config.kinds import Kind
from flow_opd.errors import ConfigError

_ARGUMENT = re.compile(r"^ *(\w+): +(.+?)(?=^ *\w+:|^ *$|\Z)", re.MULTILINE | re.DOTALL)


def fields_of(kind: Kind, taken: type[BaseModel], name: str, code: Callable[..., Any]) -> dict[str, Any]:
    """Returns name -> (type, field) of each parameter that a configuration may set.

    A class is set by the parameters of its `__init__`, but for those that a run gives; a function by its
    keyword-only ones. Defaults are whatever the code says.

    Args:
        kind: of the part.
        taken: settings of all parts of that kind; what they have no parameter may be called.
        name: of the part, for messages.
        code: the class or function.

    Raises:
        ConfigError: if one has no type that is known when it runs, or a name that is taken.
    """
    function = code.__init__ if inspect.isclass(code) else code  # type: ignore[misc]
    helps = {**_helps(code), **_helps(function)}
    found: dict[str, Any] = {}
    for each in _settable(kind, code):
        if hasattr(taken, each.name) or each.name in taken.model_fields:
            raise _refused(kind, name, each.name, "another name: all parts of this kind have one like it")
        if each.name not in getattr(function, "__annotations__", {}):
            raise _refused(kind, name, each.name, "a type such as float")
        about: dict[str, Any] = {"description": helps[each.name]} if each.name in helps else {}
        found[each.name] = (
            _hint(kind, name, function, each.name),
            Field(**_default(code, each), **about, validate_default=False),
        )
    return found


def _settable(kind: Kind, code: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    try:
        parameters = inspect.signature(code).parameters.values()
    except ValueError:  # written in C, with no signature to read
        return
    is_class = inspect.isclass(code)
    for each in parameters:
        given = is_class and each.name in kind.context
        positional = is_class and each.kind is each.POSITIONAL_OR_KEYWORD
        if not given and (positional or each.kind is each.KEYWORD_ONLY):
            yield each


def _hint(kind: Kind, name: str, function: Any, parameter: str) -> Any:
    """Returns the type of one parameter; those of the others may be known to a type checker alone."""

    class Alone:
        __annotations__ = {parameter: function.__annotations__[parameter]}

    try:
        names = getattr(function, "__globals__", {})
        return get_type_hints(Alone, globalns=names, include_extras=True)[parameter]
    except (NameError, AttributeError, TypeError, SyntaxError) as fault:
        raise _refused(kind, name, parameter, f"a type that is imported where it runs ({fault})") from None


def _default(code: Any, parameter: inspect.Parameter) -> dict[str, Any]:
    if dataclasses.is_dataclass(code):
        for each in dataclasses.fields(code):
            if each.name == parameter.name and each.default_factory is not dataclasses.MISSING:
                return {"default_factory": each.default_factory}
    return {"default": PydanticUndefined if parameter.default is parameter.empty else parameter.default}


def _helps(code: Any) -> dict[str, str]:
    """Returns parameter -> what the docstring says of it below "Args:"."""
    _, _, listed = (inspect.getdoc(code) or "").partition("Args:\n")
    return {name: " ".join(text.split()) for name, text in _ARGUMENT.findall(listed)}


def _refused(kind: Kind, name: str, parameter: str, wanted: str) -> ConfigError:
    return ConfigError(
        f"{kind.what} {name!r} has a parameter that cannot be a setting",
        value=parameter,
        allowed="parameters with a type and a name of their own",
        fix=f"give it {wanted}",
    )
