"""Reads docstrings as they are meant: plain text with `code` in backticks, not reStructuredText."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

_SECTIONS = ("Args:", "Returns:", "Yields:", "Raises:", "Example:", "Examples:", "Note:", "Attributes:")
_FIELDS = ("attribute", "data", "property")
_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_MARKUP = re.compile(r"[|*\\]|(?<=\w)_(?!\w)")
_RICH = re.compile(r"\[/?(?:cyan|bold|dim)\]")  # colours of the command line's help


def plain(text: str) -> str:
    """Returns a docstring in which nothing but backticks is markup, and an indented paragraph is code."""
    parts: list[str] = []  # in turn: text, code, text, ...
    lines: list[str] = []
    section = code = False
    before = ""
    for line in text.split("\n"):
        if line.strip() and not line.startswith(" "):
            section = line.strip() in _SECTIONS
        starts = line.startswith("    ") and not before.strip() and not section
        ends = bool(line.strip()) and not line.startswith(" ")
        if (starts and not code) or (ends and code):
            parts.append("\n".join(lines))
            lines, code = [], not code
        lines.append(line)
        before = line
    parts.append("\n".join(lines))
    return "\n".join(f"::\n\n{part}" if index % 2 else _escaped(part) for index, part in enumerate(parts))


def _escaped(text: str) -> str:
    parts = _CODE.split(_RICH.sub("", text))
    return "".join(part if index % 2 else _MARKUP.sub(r"\\\g<0>", part) for index, part in enumerate(parts))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects this module to Sphinx."""
    reader = _Reader()
    app.connect("autodoc-process-docstring", reader.before_napoleon, priority=100)
    app.connect("autodoc-process-docstring", reader.after_napoleon, priority=900)
    app.connect("autodoc-process-signature", _signature)
    app.connect("builder-inited", _read_comments)
    return {"parallel_read_safe": True}


class _Reader:
    """What is remembered from one docstring to the next."""

    def __init__(self) -> None:
        self.classes: dict[str, object] = {}
        self.lines: list[str] = []

    def before_napoleon(
        self, app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
    ) -> None:
        """Takes the markup out of a docstring, and adds its default to that of a setting."""
        lines[:] = plain("\n".join(lines)).split("\n")
        if what == "class":
            self.classes[name] = obj
        if what in _FIELDS:
            owner, _, field = name.rpartition(".")
            settings = getattr(self.classes.get(owner), "model_fields", {})
            lines += ["", _default(settings[field]), ""] if field in settings else []
            self.lines = list(lines)

    def after_napoleon(
        self, app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
    ) -> None:
        """Undoes what napoleon does to a field: it takes what stands before a colon for its type."""
        if what in _FIELDS:
            lines[:] = self.lines


def _default(field: Any) -> str:
    if field.is_required():
        return "Required."
    if field.default_factory is not None:
        return "Default: empty."
    if hasattr(field.default, "model_fields_set"):
        words = getattr(field.default, "name", None)
        return f"Default: ``{words}``." if words else "Default: the section with its own defaults."
    return f"Default: ``{json.dumps(field.default, default=str)}``."


def _signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leaves out the arguments of settings: they are the fields that follow."""
    return ("", "") if what == "class" and hasattr(obj, "model_fields") else None


def _read_comments(app: Sphinx) -> None:
    """Makes the comment that stands behind a field of a class its docstring, where it has no other."""
    for page in sorted(app.srcdir.glob("api/flow_opd.*.rst")):
        analyzer = ModuleAnalyzer.for_module(page.stem)
        analyzer.analyze()
        lines = analyzer.code.splitlines()
        for owner in ast.walk(ast.parse(analyzer.code)):
            if isinstance(owner, ast.ClassDef):
                for key, comment in _comments(owner, lines):
                    analyzer.attr_docs.setdefault(key, [comment, ""])


def _comments(owner: ast.ClassDef, lines: list[str]) -> list[tuple[tuple[str, str], str]]:
    found = []
    for field in owner.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            rest = lines[field.end_lineno - 1][field.end_col_offset :].strip()  # type: ignore[operator]
            if rest.startswith("#"):
                found.append(((owner.name, field.target.id), rest.lstrip("# ")))
    return found
