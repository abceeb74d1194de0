"""What the names of files, folders and models in a configuration mean.

`asset:NAME` is a file or folder of the package's own data, `owner/name` (where a model or an adapter is meant
and no such folder exists) a repository of the hub, anything else a path relative to the current directory. An
adapter may also be `owner/name@revision`.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from flow_opd.errors import ConfigError, nearest

ASSET = "asset:"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"\w[\w./-]*")


class HubId(NamedTuple):
    """A repository of the hub, and which state of it; None = its main branch."""

    name: str
    revision: str | None


def asset_folder() -> Path:
    """Returns the folder of the package's own data."""
    return Path(str(files("flow_opd"))) / "miniature" / "assets"


def locate(name: str | Path, *, key: str = "path") -> Path:
    """Returns the existing file or folder that `name` means.

    Args:
        name: "asset:NAME" or a path.
        key: the configuration key that holds the name, for the message.

    Raises:
        ConfigError: if there is no such asset or path.
    """
    text = str(name)
    if text.startswith(ASSET):
        return _asset(text.removeprefix(ASSET), key)
    path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(
            f"'{key}' names something that does not exist",
            value=text,
            allowed="an existing path (relative paths start in the current directory), or asset:NAME",
            fix=f"{alike(path)} Correct '{key}', or make the file first".strip(),
        )
    return path


def locate_model(name: str, *, key: str = "path") -> str:
    """Returns what to hand to `from_pretrained`: the path of a folder or asset, or a hub id as it is.

    Raises:
        ConfigError: if it is neither.
    """
    if not name.startswith(ASSET) and not Path(name).expanduser().exists() and HUB_NAME.fullmatch(name):
        return name
    return str(locate(name, key=key))


def hub_id(name: str) -> HubId | None:
    """Returns the repository that "owner/name" or "owner/name@revision" means, or None for others."""
    repository, at, revision = name.partition("@")
    if name.startswith(ASSET) or Path(name).expanduser().exists() or not HUB_NAME.fullmatch(repository):
        return None
    if not at:
        return HubId(repository, None)
    return HubId(repository, revision) if _REVISION.fullmatch(revision) else None


def alike(path: Path) -> str:
    """Returns " Did you mean ...?" for what stands beside a path that does not exist, or an empty string."""
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path.name, siblings).strip()


def _asset(name: str, key: str) -> Path:
    root = asset_folder()
    path = root / name
    inside = bool(name) and path.resolve().is_relative_to(root.resolve())
    if inside and path.exists():
        return path
    known = sorted(each.name for each in root.iterdir() if each.name[0] not in "._") if root.is_dir() else []
    files = [str(each.relative_to(root)) for each in root.rglob("*") if each.is_file()]
    hint = (nearest(name, files) or nearest(name, known)).strip()
    raise ConfigError(
        f"'{key}' names an asset that this package does not hold",
        value=ASSET + name,
        allowed=", ".join(ASSET + each for each in known) or "none: the package was built without assets",
        fix=f"{hint} Use one of these, or the path of a file of your own".strip(),
    )
