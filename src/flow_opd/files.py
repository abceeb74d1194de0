"""Writes that either happen whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_folder(target: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling folder that becomes `target` when the block ends without an error.

    A process killed at any moment leaves the whole old folder or the whole new one under that name, never a
    mixture; between the two renames that replace an old one it leaves none, and the old one lies whole in
    ".tmp-.../old" beside it. All leftovers start with ".tmp-".

    Args:
        target: the folder.
        keep: takes over the files of an old `target` that the block has not written.

    Raises:
        OSError: if it cannot be written; an old `target` stays as it was.
    """
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        yield staging
        if keep and target.exists():
            _copy_missing(target, staging)
        for file in staging.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        staging.chmod(0o755)
        if target.exists():
            _swap(staging, target)
        else:
            os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy_missing(source: Path, target: Path) -> None:
    """Copies the files of a folder that `target` does not hold, with their places and dates."""
    for file in source.rglob("*"):
        copy = target / file.relative_to(source)
        if file.is_dir():
            copy.mkdir(exist_ok=True)
        elif not copy.exists():
            shutil.copy2(file, copy)


def _swap(new: Path, old: Path) -> None:
    """Puts `new` in the place of `old`, which is put back if that fails."""
    retired = Path(tempfile.mkdtemp(prefix=".tmp-", dir=old.parent))
    try:
        os.replace(old, retired / "old")
        try:
            os.replace(new, old)
        except OSError:
            os.replace(retired / "old", old)
            raise
    finally:
        if old.exists():
            shutil.rmtree(retired, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Writes `text` to `target` atomically, as UTF-8."""
    write_bytes(target, text.encode())


def write_bytes(target: Path, content: bytes) -> None:
    """Writes `content` to `target` atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, staging = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(staging, 0o644)
        os.replace(staging, target)
    except OSError as error:
        error.filename = str(target)  # not that of the temporary file; a full disk says none at all
        error.filename2 = None
        raise
    finally:
        Path(staging).unlink(missing_ok=True)


def write_json(target: Path, value: Mapping[str, Any]) -> None:
    """Writes `value` to `target` as indented JSON, atomically; NaN is refused."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256(file: Path) -> str:
    """Returns the hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
