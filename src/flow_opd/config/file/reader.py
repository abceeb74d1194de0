"""Reads a YAML file and the assignments of `--set` as settings, strictly, and writes settings back."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from flow_opd.config.base import Key, KeyPath, Settings
from flow_opd.config.file.document import Document, Dumper, load_document, parse_value
from flow_opd.config.file.messages import explain_all
from flow_opd.errors import ConfigError
from flow_opd.files import write_text

Model = TypeVar("Model", bound=Settings)


def read(path: str | Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Returns the settings in a YAML file, after `extends` and the assignments of `--set`.

    Types are strict: 1 may stand for 1.0, but "1" is no number and 1.0 no whole number.

    Args:
        path: the file.
        model: the settings of the stage.
        overrides: assignments 'a.b=value', applied in order.

    Raises:
        ConfigError: with the file and line of every problem at once.
    """
    return validate(read_document(path, overrides), model)


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Returns what is in a YAML file, after `extends` and the assignments of `--set`.

    Raises:
        ConfigError: if a file cannot be read, or an assignment has no place in it.
    """
    return override(load_document(path), overrides)


def from_values(
    values: Mapping[str, Any],
    model: type[Model],
    overrides: Sequence[str] = (),
    *,
    source: str = "the command line",
) -> Model:
    """Returns settings made of plain values that no file holds, such as command-line options.

    Args:
        values: that are read as strictly as a file's.
        model: the settings.
        overrides: assignments 'a.b=value', applied in order.
        source: what messages call the place of the values.

    Raises:
        ConfigError: with all problems at once.
    """
    return validate(plain_values(values, overrides, source=source), model)


def plain_values(
    values: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "the command line"
) -> Document:
    """Returns plain values with the assignments of `--set`, as a document that has no file."""
    return override(Document(source, dict(values)), overrides)


def as_settings(given: Model | Mapping[str, Any] | None, model: type[Model]) -> Model:
    """Returns settings that a call has: as they are, of plain values, or the defaults.

    Raises:
        ConfigError: if values do not fit, or they are something else.
    """
    if given is None or isinstance(given, Mapping):
        return from_values(given or {}, model, source="the settings")
    if not isinstance(given, model):
        raise ConfigError(
            "settings of another kind",
            value=type(given).__name__,
            allowed=f"{model.__name__}, a dict of its keys, or None",
            fix=f"give flow_opd.{model.__name__}(...)",
        )
    return given


def validate(document: Document, model: type[Model]) -> Model:
    """Returns the settings that a document holds.

    Raises:
        ConfigError: with the place of every problem at once.
    """
    try:
        # By way of JSON, where strictness still lets a list be a tuple and a word be a path.
        return model.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        message = explain_all(error, model, document)
    raise ConfigError(message)


def dump(settings: Settings, path: str | Path) -> None:
    """Writes settings atomically, defaults included; `read` gives an equal model."""
    write_text(Path(path), to_yaml(settings))


def to_yaml(settings: Settings) -> str:
    """Returns settings as YAML text, defaults included, in the order of the fields."""
    return yaml.dump(
        settings.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100
    )


def override(document: Document, assignments: Sequence[str]) -> Document:
    """Returns `document` with the assignments made in their order; each is 'a.b=value', value in YAML.

    A number in the path picks an item of a list: 'teachers.0.guidance_scale=1'. A section that is
    absent or null is made.

    Raises:
        ConfigError: if an assignment has no '=', or leads through a value or past the end of a list.
    """
    result = Document(document.name, copy.deepcopy(document.data), dict(document.places))
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise _refused(assignment, assignment, "an assignment like optimizer.learning_rate=3e-4")
        place = f"--set {dotted.strip()}"
        path = _assign(result.data, keys, parse_value(text, place), assignment)
        result.replaced(path, place)
    return result


def _assign(data: dict[str, Any], keys: list[str], value: Any, assignment: str) -> KeyPath:
    """Writes `value` at `keys` and returns the path, list positions as numbers."""
    path: list[Key] = []
    where: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(where, list):
            if not key.isdecimal() or int(key) >= len(where):
                allowed = f"a position from 0 to {len(where) - 1}" if where else "nothing: the list is empty"
                raise _refused(assignment, key, f"{allowed} in the list {'.'.join(keys[:depth])}")
            at: Key = int(key)
        elif isinstance(where, dict):
            at = key
        else:
            raise _refused(assignment, where, f"a section at {'.'.join(keys[:depth])}, not a single value")
        path.append(at)
        if last:
            where[at] = value
        elif isinstance(where, list):
            where = where[int(key)]
        else:
            if where.get(at) is None:
                where[at] = {}
            where = where[at]
    return tuple(path)


def _refused(assignment: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(
        f"cannot apply --set {assignment}",
        value=value,
        allowed=allowed,
        fix="write --set section.key=value with keys that the command's --keys lists",
    )
