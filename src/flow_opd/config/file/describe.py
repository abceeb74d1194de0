"""All keys of a stage with type, default and meaning, for `--keys` and the documentation."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flow_opd.config.file.schema import alternatives
from flow_opd.config.parts import Part
from flow_opd.errors import ConfigError


@dataclass(frozen=True)
class KeyHelp:
    """One key of a configuration file."""

    key: str  # dotted; [] is a place in a list, NAME a word of one's own, (word) the choice it belongs to
    type: str
    default: str  # "required" if there is none
    help: str


def describe(
    model: type[BaseModel], prefix: str = "", *, also: Sequence[Part] = (), but: Collection[str] = ()
) -> Iterator[KeyHelp]:
    """Yields every key of a settings model, sections before their contents.

    Args:
        model: the settings.
        prefix: of the keys.
        also: parts without a name of their own whose settings are described, too.
        but: fields that are left out.
    """
    for name, field in model.model_fields.items():
        if name in but:
            continue
        key = prefix + name
        if field.default_factory is not None:
            default = "empty"
        else:
            default = "required" if field.default is PydanticUndefined else _value(field.default)
        yield KeyHelp(key, _type(field.annotation), default, " ".join((field.description or "").split()))
        yield from _inside(field.annotation, key, also)


def _inside(annotation: Any, key: str, also: Sequence[Part]) -> Iterator[KeyHelp]:
    parts = alternatives(annotation)
    for part in parts:
        if isinstance(part, type) and issubclass(part, Part) and part.is_kind():
            yield from _choices(part, key, also)
        elif isinstance(part, type) and issubclass(part, BaseModel):
            words = get_args(part.model_fields["name"].annotation) if len(parts) > 1 else ()
            yield from describe(part, f"{key}({'|'.join(words)})." if words else f"{key}.", also=also)
        elif get_origin(part) is tuple:
            yield from _inside(get_args(part)[0], f"{key}[]", also)
        elif get_origin(part) is dict:
            yield from _inside(get_args(part)[1], f"{key}.NAME", also)


def _choices(kind: type[Part], key: str, also: Sequence[Part]) -> Iterator[KeyHelp]:
    """Yields the names that a part may have, what all of its kind are set by, and what each alone is."""
    named = [*kind.kind.names(), *(part.name for part in also if isinstance(part, kind))]
    words = list(dict.fromkeys(named))
    about = f"Which {kind.kind.what}; a word in place of the section where it needs no other key."
    yield KeyHelp(f"{key}.name", " | ".join([*words, "package.module:Name"]), "required", about)
    yield from describe(kind, f"{key}.", also=also, but=("name",))
    for word in words:
        try:
            model = kind.chosen(word)
        except ConfigError as error:  # an installed package that does not work here
            yield KeyHelp(f"{key}({word})", "unusable", "none", str(error))
            continue
        shared = {name for name in kind.model_fields if name in model.model_fields}
        yield from describe(model, f"{key}({word}).", also=also, but=shared)


def _type(annotation: Any) -> str:
    names = [_single(part) for part in alternatives(annotation)]
    if NoneType in get_args(annotation):
        names.append("null")
    return " | ".join(dict.fromkeys(names))


def _single(part: Any) -> str:
    if get_origin(part) is Literal:
        return " | ".join(map(str, get_args(part)))
    if get_origin(part) is tuple:
        items = get_args(part)
        return f"list of {_type(items[0])}" if Ellipsis in items else f"[{', '.join(map(_type, items))}]"
    if get_origin(part) is dict:
        return f"NAME: {_type(get_args(part)[1])}"
    if issubclass(part, Part):
        return "name | section"
    if issubclass(part, BaseModel):
        return "section"
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true | false"}
    name: str = part.__name__
    return words.get(name, name.lower())


def _value(default: Any) -> str:
    if isinstance(default, Part):
        return default.name
    if isinstance(default, BaseModel):
        return "see below"
    if isinstance(default, tuple):
        return f"[{', '.join(map(_value, default))}]"
    return json.dumps(default) if default is None or isinstance(default, bool) else str(default)
