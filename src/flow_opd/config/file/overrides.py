"""`--set a.b=c`: single values from the command line that override a file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from flow_opd.config.base import Key, KeyPath
from flow_opd.config.file.document import Document, parse_value
from flow_opd.errors import ConfigError


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
        result.places[path] = place
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
