"""Turns what pydantic refuses into messages with file, line and the nearest allowed word."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flow_opd.config.base import CROSS_FIELD, KeyPath, Problem
from flow_opd.config.file.document import Document
from flow_opd.config.file.keys import holds, item_at, model_at
from flow_opd.errors import explain, nearest


@dataclass
class _Finding:
    """Everything that was refused at one place; the branches of a union refuse it once each."""

    path: KeyPath
    kind: str
    allowed: list[str] = field(default_factory=list)


def explain_all(error: ValidationError, model: type[BaseModel], document: Document) -> str:
    """Returns one message for all problems of a document, a line for each, in the order of the fields."""
    lines: list[str] = []
    findings: dict[KeyPath, _Finding] = {}
    refused: list[KeyPath] = []
    for details in error.errors(include_url=False):
        path, kind = _data_path(details, document.data), details["type"]
        if kind == CROSS_FIELD:
            lines += [_cross_field(problem, path, document) for problem in details["ctx"]["problems"]]
            refused.append(path)
            continue
        finding = findings.setdefault(path, _Finding(path, kind))
        finding.allowed.append(_allowed(details))
    # A union also refuses the whole of what one of its branches refuses in part: keep the part.
    kept = [
        finding
        for finding in findings.values()
        if not any(other[: len(finding.path)] == finding.path != other for other in (*findings, *refused))
    ]
    lines = [_line(finding, model, document) for finding in kept] + lines
    if len(lines) == 1:
        return lines[0]
    return "\n".join([f"{len(lines)} problems in {document.name}:", *(f"- {line}" for line in lines)])


def _data_path(details: ErrorDetails, data: Any) -> KeyPath:
    """The error's place in the data: pydantic also names the branches of unions, which are no keys."""
    path: list[str | int] = []
    loc = details["loc"]
    for index, key in enumerate(loc):
        absent = details["type"] == "missing" and index == len(loc) - 1
        if absent or holds(data, key):
            path.append(key)
            data = item_at(data, (key,))
    if details["type"] in ("union_tag_invalid", "union_tag_not_found") and not isinstance(data, str):
        path.append(details["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _line(finding: _Finding, model: type[BaseModel], document: Document) -> str:
    path, dotted = finding.path, _dotted(finding.path)
    place = document.place(path)
    section = model_at(model, document.data, path[:-1]) if path else model
    if finding.kind == "extra_forbidden":
        known = list(section.model_fields) if section else []
        hint = nearest(str(path[-1]), known).strip()
        return explain(
            f"unknown key {str(path[-1])!r} in {place}{_inside(path)}",
            value=_short(item_at(document.data, path)),
            allowed=", ".join(known) or "no keys",
            fix=f"{hint} Rename or remove the key".strip(),
        )
    if finding.kind in ("missing", "union_tag_not_found"):
        return explain(
            f"missing key {str(path[-1])!r} in {document.place(path[:-1])}{_inside(path)}",
            value=None,
            allowed=_help(section, path) or finding.allowed[0],
            fix=f"add '{dotted}'",
        )
    value, allowed = item_at(document.data, path), " or ".join(dict.fromkeys(finding.allowed))
    hint = nearest(value, re.findall(r"'([^']*)'", allowed)).strip() if isinstance(value, str) else ""
    about = _help(section, path)
    return explain(
        f"wrong value of {dotted!r} in {place}",
        value=_short(value),
        allowed=allowed,
        fix=f"{hint} Correct '{dotted}'{f' ({about})' if about else ''}".strip(),
    )


def _cross_field(problem: Problem, path: KeyPath, document: Document) -> str:
    place = document.place((*path, *problem.at))
    return explain(
        f"{problem.what} in {place}",
        value=problem.value,
        allowed=problem.allowed,
        fix=problem.fix,
    )


def _allowed(details: ErrorDetails) -> str:
    if details["type"] == "union_tag_invalid":
        return str(details["ctx"]["expected_tags"])
    if details["type"] == "model_type":
        return "a section of keys and values"
    message = details["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    message = message.replace("integer", "whole number")  # as --keys calls it
    return message[:1].lower() + message[1:]


def _help(section: type[BaseModel] | None, path: KeyPath) -> str:
    known = section.model_fields.get(str(path[-1])) if section and path else None
    return " ".join((known.description or "").split()).rstrip(".") if known else ""


def _inside(path: KeyPath) -> str:
    return f" (section {_dotted(path[:-1])})" if len(path) > 1 else ""


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path)) or "the whole file"


def _short(value: Any) -> Any:
    """The value itself if it is short to print, else what it is."""
    if isinstance(value, str) and len(value) > 80:
        return value[:77] + "..."
    if isinstance(value, dict | list) and len(repr(value)) > 80:
        return f"{'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    return value
