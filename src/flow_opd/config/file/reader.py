"""Reads a YAML file as the settings of a stage, strictly, and writes settings back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from flow_opd.config.base import Settings
from flow_opd.config.file.document import Document, Dumper, load_document
from flow_opd.config.file.messages import explain_all
from flow_opd.config.file.overrides import override
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
    return validate(override(load_document(path), overrides), model)


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
    return validate(override(Document(source, dict(values)), overrides), model)


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
