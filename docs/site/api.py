"""A page for each module of the package, found by walking its folder: a module that moves moves its page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docstrings import plain

_OF_SETTINGS = re.compile(r"^class \w+\([^)]*(?:Settings|Config)\)", re.MULTILINE)
_LEFT_OUT = ("__main__",)


def write_api(package: Path, out: Path) -> dict[Path, str]:
    """Writes the pages into `out`.

    Args:
        package: folder of the package, two levels below the root of the repository.
        out: folder, new.

    Returns:
        Source file, relative to the root of the repository -> its page, relative to the folder above `out`.
    """
    out.mkdir(parents=True)
    root = package.parents[1]
    pages: dict[Path, str] = {}
    for file in sorted(package.rglob("*.py")):
        if file.stem in _LEFT_OUT:
            continue
        module = _name(file, package)
        is_package = file.name == "__init__.py"
        inside = _inside(file.parent, package) if is_package else {}
        page = "index" if file.parent == package and is_package else module
        (out / f"{page}.rst").write_text(_page(module, file.read_text(), inside))
        pages[file.relative_to(root)] = f"{out.name}/{page}.rst"
        if is_package:
            pages[file.parent.relative_to(root)] = f"{out.name}/{page}.rst"
    return pages


def first_line(source: str) -> str:
    """Returns what a module says about itself, in one line."""
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _name(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _inside(folder: Path, package: Path) -> dict[str, str]:
    """Returns the modules and packages that are right inside a package's folder, with their first lines."""
    files = [*folder.glob("*.py"), *folder.glob("*/__init__.py")]
    files = [file for file in files if file != folder / "__init__.py" and file.stem not in _LEFT_OUT]
    return dict(sorted((_name(file, package), first_line(file.read_text())) for file in files))


def _page(module: str, source: str, inside: dict[str, str]) -> str:
    title = module.replace("_", r"\_")
    lines = [title, "=" * len(title), "", f".. automodule:: {module}"]
    if _OF_SETTINGS.search(source):  # what a private base brings belongs to the section, too
        lines.append("   :inherited-members: Settings, BaseModel")
    if inside and "__all__" in source:  # what it hands on has its own page, which links lead to
        lines.append("   :no-index:")
    if inside:
        lines += ["", *(f"* :doc:`{name} <{name}>` -- {plain(about)}" for name, about in inside.items())]
        lines += ["", ".. toctree::", "   :hidden:", ""]
        lines += [f"   {name.rpartition('.')[2]} <{name}>" for name in inside]
    return "\n".join(lines) + "\n"
