"""The code of other people that settings name, as far as a result depends on it."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flow_opd.config.parts import Part

_OURS = "flow_opd"


def parts_of(settings: Any) -> Iterator[Part]:
    """Yields every part that settings name, at any depth."""
    if isinstance(settings, Part):
        yield settings
    if isinstance(settings, BaseModel):
        inside: Any = dict(settings).values()
    elif isinstance(settings, Mapping):
        inside = settings.values()
    else:
        inside = settings if isinstance(settings, tuple | list) else ()
    for each in inside:
        yield from parts_of(each)


def is_ours(part: Part) -> bool:
    """Says whether a part's settings and code are of this package."""
    return type(part).__module__.split(".")[0] == _OURS


def code_versions(settings: Any) -> dict[str, list[str]]:
    """Returns "kind name" -> versions of the packages and hashes of the source, of parts that are not ours.

    The source is that of the module that was named, of the one that defines the code, and of the modules
    beside them in their packages. What these import from elsewhere is known by its package's version alone.
    """
    found = {}
    for part in parts_of(settings):
        if not is_ours(part):
            named = part.kind.place(part.name).partition(":")[0]
            modules = sorted({named, type(part).__module__})
            code = type(part).code or type(part)
            found[f"{part.kind.what} {part.name}"] = [
                each for module in modules for each in (_version(module), _source(module, code))
            ]
    return found


def _version(module: str) -> str:
    """Returns the version of the installed package that a module belongs to; nothing for a loose file."""
    owners = packages_distributions().get(module.split(".")[0], [])
    try:
        return version(owners[0]) if owners else ""
    except PackageNotFoundError:
        return ""


def _source(module: str, code: Any) -> str:
    """Returns the hash of a module and of those beside it, or of the code alone, where it has no file."""
    here = Path(getattr(importlib.import_module(module), "__file__", None) or "")
    digest = hashlib.sha256()
    if here.is_file():
        in_package = "." in module or (here.parent / "__init__.py").exists()
        for each in sorted(here.parent.glob("*.py")) if in_package else [here]:
            digest.update(each.read_bytes())
    else:  # in an archive, a notebook or typed in
        digest.update(_written(code).encode())
    return digest.hexdigest()


def _written(code: Any) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        inside = getattr(code, "__code__", None)
        return repr((inside.co_code, inside.co_consts) if inside else code)
