"""Reading and writing the files of an adapter folder: whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from flow_opd.errors import AdapterError


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes `files` into `folder`, so that no reader ever sees a half-written file.

    A new folder appears complete, by one rename. In a folder that exists (it may hold a model card) each
    file is replaced atomically.

    Raises:
        AdapterError: if the folder cannot be written; nothing half-written is left behind.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        staging.mkdir(parents=True)
        for name, content in files.items():
            with (staging / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            for name in files:
                os.replace(staging / name, folder / name)
        else:
            os.replace(staging, folder)
    except OSError as error:
        raise AdapterError(
            f"cannot write the adapter folder ({error.strerror})",
            value=str(folder),
            allowed="a folder that this user may write, on a disk with room",
            fix="choose another folder or free some space",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file of an adapter folder.

    Raises:
        AdapterError: if it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(
            f"cannot read an adapter file ({error.strerror})",
            value=str(path),
            allowed="a complete adapter folder",
            fix="check the path, or copy the folder again",
        ) from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a safetensors file, and the metadata of its header.

    Raises:
        AdapterError: if the file is missing, truncated or no safetensors file.
    """
    if not path.is_file():
        read_bytes(path)  # raises with the system's own reason
    try:
        with safe_open(path, "pt") as file:
            names: list[str] = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        if path.read_bytes()[:2] in (b"PK", b"\x80\x02"):
            raise AdapterError(
                "a file that torch.save wrote, which could run code and is never opened here",
                value=str(path),
                allowed="safetensors",
                fix="load it once with PEFT in a place that you trust, and save it again as safetensors",
            ) from error
        raise AdapterError(
            f"damaged safetensors file ({error})",
            value=str(path),
            allowed="a complete safetensors file",
            fix="copy or download the file again; it is probably truncated",
        ) from error
