"""A YAML file as plain data that remembers, for each key, the line that it came from.

YAML is read as its version 1.2 means it, not 1.1: `1e-4` is a number, `no` and `on` are words, `1:30`
and `2026-01-01` are text. Tags that build Python objects are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flow_opd.config.base import KeyPath
from flow_opd.config.file.keys import item_at
from flow_opd.config.locations import ASSET, locate
from flow_opd.errors import ConfigError, explain, nearest

EXTENDS = "extends"
_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"(~|null|Null|NULL|)$")
_PREFIX = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):
    """The composer of YAML nodes; aliases are refused, since they hide which line a value is from."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Returns the next node."""
        if self.check_event(yaml.AliasEvent):
            mark = self.get_mark()
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Writes text that `Loader` reads back as the same values."""


for _class in (Loader, Dumper):
    _class.yaml_implicit_resolvers = {}  # drops those of YAML 1.1
    _class.add_implicit_resolver(_PREFIX + "int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver(_PREFIX + "float", _FLOAT, list("-+.0123456789"))
    _class.add_implicit_resolver(_PREFIX + "bool", _BOOL, list("tTfF"))
    _class.add_implicit_resolver(_PREFIX + "null", _NULL, ["~", "n", "N", ""])

_SCALARS: dict[str, Callable[[str], Any]] = {
    _PREFIX + "str": str,
    _PREFIX + "int": int,
    _PREFIX + "float": float,
    _PREFIX + "bool": lambda text: text.lower() == "true",
    _PREFIX + "null": lambda text: None,
}


@dataclass
class Document:
    """Plain data with the place ("configs/x.yaml:12" or "--set") of each of its keys."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Returns where `path` was written, or the closest thing around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name

    def over(self, lower: Document) -> Document:
        """Returns `lower` overridden by this document: mappings merge, everything else replaces."""
        result = Document(self.name, _merged(lower.data, self.data), dict(lower.places))
        for path, place in self.places.items():
            if isinstance(item_at(self.data, path), dict) and isinstance(item_at(lower.data, path), dict):
                result.places[path] = place
            else:
                result.replaced(path, place)
        return result

    def replaced(self, path: KeyPath, place: str) -> None:
        """Notes that all of `path` comes from `place` now; what was known of places inside it is over."""
        for other in [each for each in self.places if each[: len(path)] == path]:
            del self.places[other]
        self.places[path] = place


def _merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    result = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(low.get(key), dict)
        result[key] = _merged(low[key], value) if both else value
    return result


def load_document(path: str | Path, _chain: tuple[Path, ...] = ()) -> Document:
    """Returns the content of a YAML file; every mapping in it overrides the file that its `extends` names.

    Raises:
        ConfigError: if a file is absent, is no YAML mapping, repeats a key or extends itself.
    """
    file = Path(path)
    document = parse_yaml(_read_text(file), str(file))
    for at in _extending(document.data):
        lower = _extended(document, at, file, (*_chain, file.resolve()))
        document = document.over(lower)
    return document


def _extending(data: dict[str, Any], at: KeyPath = ()) -> list[KeyPath]:
    """Returns where mappings with the key `extends` are, outer ones first."""
    inner = [
        place
        for key, value in data.items()
        if isinstance(value, dict)
        for place in _extending(value, (*at, key))
    ]
    return ([at] if EXTENDS in data else []) + inner


def _extended(document: Document, at: KeyPath, file: Path, chain: tuple[Path, ...]) -> Document:
    """Returns the file that the mapping at `at` extends, moved there; takes the key out of the mapping."""
    mapping = document.data
    for key in at:
        mapping = mapping[str(key)]
    place = document.place((*at, EXTENDS))
    lower = mapping.pop(EXTENDS)
    if not isinstance(lower, str):
        raise ConfigError(
            f"wrong value of '{EXTENDS}' in {place}",
            value=lower,
            allowed="the path of one YAML file, relative to this one, or asset:configs/NAME.yaml",
            fix="name a single file",
        )
    target = locate(lower, key=EXTENDS) if lower.startswith(ASSET) else file.parent / lower
    if target.resolve() in chain:
        raise ConfigError(
            f"'{EXTENDS}' in {place} runs in a circle",
            value=" -> ".join([*(each.name for each in chain), target.name]),
            allowed="a chain of files that ends",
            fix=f"remove '{EXTENDS}' from one of these files",
        )
    if not target.is_file():
        raise ConfigError(_absent(target, f"the file that '{EXTENDS}' names in {place} does not exist"))
    found = load_document(target, chain)
    data = found.data
    for key in reversed(at):
        data = {str(key): data}
    return Document(found.name, data, {(*at, *path): where for path, where in found.places.items()})


def parse_yaml(text: str, name: str) -> Document:
    """Returns the mapping in `text`; `name` is what messages call the file.

    Raises:
        ConfigError: for a syntax error, a repeated key or a top level that is no mapping.
    """
    node = _compose(text, name)
    document = Document(name)
    if node is None:
        return document
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{name} does not hold keys and values",
            value=_shown(text),
            allowed="a mapping, 'key: value' on each line",
            fix="write the settings as keys and values",
        )
    problems: list[str] = []
    document.data = _plain(node, (), document, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return document


def parse_value(text: str, name: str) -> Any:
    """Returns the value that `text` has in YAML: a number, a word, a list, a mapping, null.

    Raises:
        ConfigError: for a syntax error or a repeated key.
    """
    node = _compose(text, name)
    if node is None:
        return None
    problems: list[str] = []
    value = _plain(node, (), Document(name), problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return value


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else text
        what = f"{place} cannot be read as YAML ({error.problem or error.context})"
    except yaml.YAMLError as error:
        line, what = text, f"{name} cannot be read as YAML ({str(error).splitlines()[0]})"
    raise ConfigError(
        what, value=_shown(line), allowed="plain YAML 1.2 without aliases", fix="correct this line"
    ) from None


def _plain(node: yaml.Node, path: KeyPath, document: Document, problems: list[str]) -> Any:
    place = f"{document.name}:{node.start_mark.line + 1}"
    document.places.setdefault(path, place)
    if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
        return [_plain(item, (*path, index), document, problems) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
        return _plain_mapping(node, path, document, problems)
    try:
        return _SCALARS[node.tag](node.value)
    except (KeyError, TypeError, ValueError):
        problems.append(
            explain(
                f"tag in {place} is not understood",
                value=node.tag.replace(_PREFIX, "!!"),
                allowed="plain numbers, words, lists and mappings without tags",
                fix="write the value without a tag",
            )
        )
        return None


def _plain_mapping(
    node: yaml.MappingNode, path: KeyPath, document: Document, problems: list[str]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = f"{document.name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _PREFIX + "str":
            value = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            problems.append(
                explain(
                    f"key in {place} is no word", value=value, allowed="words", fix="quote or rename the key"
                )
            )
            continue
        key = key_node.value
        where = (*path, key)
        if key in result:
            problems.append(
                explain(
                    f"key {key!r} in {place} is there already",
                    value=key,
                    allowed=f"each key once (the first is in {document.place(where)})",
                    fix="remove one of the two",
                )
            )
            continue
        document.places[where] = place
        result[key] = _plain(value_node, where, document, problems)
    return result


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise ConfigError(_absent(file, "the configuration file does not exist"))
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is no text file",
            value=f"byte {error.start}",
            allowed="UTF-8 text",
            fix="save the file as UTF-8",
        ) from None


def _absent(file: Path, what: str) -> str:
    folder = file.parent
    known = sorted(each.name for each in folder.glob("*.y*ml")) if folder.is_dir() else []
    hint = nearest(file.name, known).strip()
    return explain(
        what,
        value=os.path.normpath(file),
        allowed=f"in {os.path.normpath(folder)}: {', '.join(known) or 'no YAML file there'}",
        fix=f"{hint} Give the path of a file that exists".strip(),
    )


def _shown(text: str, limit: int = 80) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 3] + "..."
