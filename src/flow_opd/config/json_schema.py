"""JSON schemas of the stages' YAML files, for editors that complete and check while one types.

A schema says what one file may hold, not what its stage needs in the end. A section may leave out any key,
since the file that `extends` names, or `--set`, may bring it. What stands in a list has to be whole, since
lists replace each other. Rules between keys are left to the command, which has the better messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from flow_opd.config.base import Settings, named
from flow_opd.config.file.document import EXTENDS
from flow_opd.config.parts import BY_NAME

DIALECT = GenerateJsonSchema.schema_dialect
_EXTENDS = {
    "description": "YAML file, relative to this one, whose values this section overrides.",
    "type": "string",
    "minLength": 1,
}
_REF = "#/$defs/"

Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, which sees where a word may stand for a section, too."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Returns the schema of what a function passes on, with a mark where the function is `named`."""
        inner = super().function_before_schema(schema)
        return {BY_NAME: True, "anyOf": [inner]} if schema["function"]["function"] is named else inner

    def get_title_from_name(self, name: str) -> str:
        """Returns the name of a field as it is."""
        return name


def json_schema(model: type[Settings], title: str) -> Schema:
    """Returns the JSON schema of the YAML files whose settings are `model`."""
    schema = model.model_json_schema(schema_generator=_Generator)
    definitions: dict[str, Schema] = schema.pop("$defs", {})
    sections = _sections(schema, definitions)
    inner = {
        name: _rewritten(definition, definitions, merges=name in sections)
        for name, definition in sorted(definitions.items())
    }
    whole = _rewritten(schema, definitions, merges=True)
    return {"$schema": DIALECT, "title": title, **whole, **({"$defs": inner} if inner else {})}


def _sections(schema: Schema, definitions: dict[str, Schema]) -> set[str]:
    """Returns the definitions that are reached through sections alone, in which files override each other."""
    found: set[str] = set()
    ahead = list(_references(schema))
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += _references(definitions[name])
    return found


def _references(node: Any) -> Iterator[str]:
    """Yields the definitions that a node leads to, but for those inside a list."""
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict) and node.get("type") != "array":
        if "$ref" in node:
            yield node["$ref"].removeprefix(_REF)
        for key, item in node.items():
            if key not in ("discriminator", "default"):
                yield from _references(item)


def _rewritten(node: Schema, definitions: dict[str, Schema], *, merges: bool) -> Schema:
    """Returns a node as one file may hold it.

    Args:
        node: of pydantic's schema.
        definitions: of the whole schema.
        merges: whether a section here overrides the one of another file.
    """
    node = dict(node)
    words = _words(node, definitions) if node.pop(BY_NAME, False) else []
    for key in ("properties", "additionalProperties", "items", "prefixItems", "anyOf", "oneOf"):
        if key in node:
            inside = merges and key not in ("items", "prefixItems")
            node[key] = _each(node[key], definitions, named_ones=key == "properties", merges=inside)
    if isinstance(node.get("description"), str):
        node["description"] = " ".join(node["description"].split())
    if "oneOf" in node:
        node.pop("discriminator", None)
        if merges:  # a section that leaves out its name fits several choices
            node["anyOf"] = node.pop("oneOf")
    if words:
        node["anyOf"] = [{"enum": words}, *node["anyOf"]]
    if node.get("type") == "object":
        if merges:
            node.pop("required", None)
            node["properties"] = {**node.get("properties", {}), EXTENDS: _EXTENDS}
        node.pop("title", None)
    return _flat(node)


def _each(value: Any, definitions: dict[str, Schema], *, named_ones: bool, merges: bool) -> Any:
    if isinstance(value, list):
        return [_rewritten(item, definitions, merges=merges) for item in value]
    if named_ones:
        return {name: _untitled(_rewritten(item, definitions, merges=merges)) for name, item in value.items()}
    return _rewritten(value, definitions, merges=merges) if isinstance(value, dict) else value


def _words(node: Schema, definitions: dict[str, Schema]) -> list[str]:
    """Returns the names of those choices of a union that need no other key."""
    words: list[str] = []
    for choice in node["anyOf"][0]["oneOf"]:
        member = definitions[choice["$ref"].removeprefix(_REF)] if "$ref" in choice else choice
        if set(member.get("required", ())) <= {"name"}:
            name = member["properties"]["name"]
            words += name.get("enum") or ([name["const"]] if "const" in name else [])
    return words


def _untitled(node: Schema) -> Schema:
    node.pop("title", None)
    return node


def _flat(node: Schema) -> Schema:
    """Returns a node whose alternatives hold no bare list of alternatives of their own."""
    if "anyOf" not in node:
        return node
    parts: list[Schema] = []
    for part in node["anyOf"]:
        parts += part["anyOf"] if set(part) == {"anyOf"} else [part]
    return {**node, "anyOf": parts}
