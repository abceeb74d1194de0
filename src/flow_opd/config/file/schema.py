"""Walks through settings models beside their data: which model a place in a file belongs to."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from flow_opd.config.base import KeyPath, named
from flow_opd.config.parts import Part
from flow_opd.errors import ConfigError


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
