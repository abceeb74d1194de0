"""Tensors in many files below one folder, each named by the hash of its bytes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flow_opd.files import sha256, write_bytes
from flow_opd.processes import Processes

SUFFIX = ".safetensors"
LEFTOVER_SECONDS = 3600.0


class ShardFolder:
    """Shards that are written whole or not at all; a damaged one does not have its name's hash."""

    def __init__(self, folder: Path) -> None:
        """Names the folder; nothing is read or written yet."""
        self.folder = folder
        self._open: dict[Path, Any] = {}

    def headers(self) -> Iterator[tuple[Path, Mapping[str, str]]]:
        """Yields each shard with the header it was written with; what cannot be read counts as absent."""
        for file in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                with safe_open(file, framework="pt") as reader:
                    header = reader.metadata()
            except (OSError, SafetensorError):
                continue
            yield file, header or {}

    def write(self, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
        """Writes a shard, under the hash of its bytes: the same content twice is one file."""
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, dict(header))
        write_bytes(self.folder / f"{hashlib.sha256(content).hexdigest()}{SUFFIX}", content)

    def row(self, file: Path, name: str, at: int) -> Tensor:
        """Returns row `at` of the tensor `name` of a shard; the file is opened once and read where needed."""
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        return self._open[file].get_slice(name)[at]

    def remove_damaged(self, processes: Processes) -> None:
        """Removes shards without the hash of their name, and what a kill in the middle of a write has left.

        Args:
            processes: who shares the work of hashing; all see the same folder.
        """
        files = sorted(self.folder.glob(f"*{SUFFIX}"))
        processes.wait()  # until all have seen the same files
        for file in [files[row] for row in processes.rows(len(files))]:
            if sha256(file) != file.stem:
                file.unlink(missing_ok=True)
        if processes.is_main:
            self._remove_leftovers()
        processes.wait()
        self._open = {}

    def _remove_leftovers(self) -> None:
        """Removes unfinished files that nobody can be writing any more: another run may share the folder."""
        for leftover in self.folder.glob(".tmp-*"):
            with suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    leftover.unlink()
