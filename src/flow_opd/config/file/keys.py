"""The keys of settings models: all of them with their help, and which model a place in a file belongs to."""

from __future__ import annotations

import json
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flow_opd.config.base import KeyPath, named
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
            named = part.model_fields.get("name")
            words = get_args(named.annotation) if named is not None and len(parts) > 1 else ()
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
    if not isinstance(part, type):
        return str(part).removeprefix("typing.")
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


def model_at(model: type[BaseModel], data: Any, path: KeyPath) -> type[BaseModel] | None:
    """Returns the model that the mapping at `path` has to satisfy, or None if it is no settings section."""
    where: Any = model
    for key in path:
        where = _below(_choose(where, data), key)
        data = item_at(data, (key,))
    chosen = _choose(where, data)
    return chosen if isinstance(chosen, type) and issubclass(chosen, BaseModel) else None


def item_at(data: Any, path: KeyPath) -> Any:
    """Returns the value at `path` of plain data, or None where it ends earlier."""
    for key in path:
        if not holds(data, key):
            return None
        data = data[key]
    return data


def holds(data: Any, key: str | int) -> bool:
    """Returns whether `key` leads somewhere in `data`."""
    if isinstance(data, list):
        return isinstance(key, int) and key < len(data)
    return isinstance(data, Mapping) and key in data


def alternatives(annotation: Any) -> list[Any]:
    """Returns the members of a union without None, or the annotation alone; Annotated is peeled off."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [
            each for part in get_args(annotation) if part is not type(None) for each in alternatives(part)
        ]
    return [annotation]


def discriminators(model: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """Returns the fields of `model` that admit only listed words, with these words."""
    return {
        name: get_args(field.annotation)
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) is Literal
    }


def _choose(annotation: Any, data: Any) -> Any:
    """The member of a union that the words in `data` pick, else its first model."""
    models = [
        each for each in alternatives(annotation) if isinstance(each, type) and issubclass(each, BaseModel)
    ]
    data = named(data)
    if len(models) == 1 and issubclass(models[0], Part) and models[0].is_kind():
        return _part(models[0], data)
    if len(models) <= 1 or not isinstance(data, Mapping):
        return models[0] if models else alternatives(annotation)[0]
    for each in models:
        if all(data.get(name) in words for name, words in discriminators(each).items() if len(words) == 1):
            return each
    return models[0]


def _part(kind: type[Part], data: Any) -> type[Part]:
    """Returns the settings of the part that `data` names, or the kind if there is none."""
    name = data.get("name") if isinstance(data, Mapping) else None
    try:
        return kind.chosen(name) if isinstance(name, str) else kind
    except ConfigError:
        return kind


def _below(where: Any, key: str | int) -> Any:
    """The annotation of an item of `where`."""
    if isinstance(where, type) and issubclass(where, BaseModel):
        field = where.model_fields.get(str(key))
        return field.annotation if field else None
    parts = get_args(where)
    if not parts:
        return None
    if get_origin(where) is tuple and isinstance(key, int) and Ellipsis not in parts:
        return parts[min(key, len(parts) - 1)]
    return parts[-1] if get_origin(where) in (dict, Mapping) else parts[0]
