"""Files of adapters: written whole or not at all, read, and how their tensors are called.

A tensor is called `<prefix><module>.lora_A.weight`, or something like it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from flow_opd.errors import AdapterError
from flow_opd.files import atomic_folder

PEFT = "base_model.model."  # PEFT: then the module of diffusers
DIFFUSERS = "transformer."  # diffusers: then the module of diffusers
ONE_TRAINER = "lora_transformer_"  # OneTrainer: the module of diffusers with _ for each dot
COMFYUI = "diffusion_model."  # ComfyUI's own: the module of the original checkpoint
KOHYA = "lora_unet_"  # kohya's scripts, ComfyUI: the module of the original checkpoint with _ for each dot
PREFIXES = (PEFT, DIFFUSERS, ONE_TRAINER, COMFYUI, KOHYA)
METADATA_KEY = "lora_adapter_metadata"  # in the header of a diffusers file: the config of PEFT as JSON

_KEY = re.compile(r"(?P<module>.+)\.(?:lora_(?P<side>A|B|down|up)\.weight|alpha)")
_SIDES = {"A": "down", "down": "down", "B": "up", "up": "up", None: "alpha"}
_OF_TEXT_ENCODERS = ("text_encoder", "lora_te")


class Pair(NamedTuple):
    """What a file holds of one module."""

    down: Tensor  # A [r, in], float32
    up: Tensor  # B [out, r], float32
    alpha: float | None  # of this module, where the file has a key for it


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes all `files` into `folder`, or none; other files in there, such as a model card, stay.

    Raises:
        AdapterError: if the folder cannot be written.
    """
    try:
        with atomic_folder(folder, keep=True) as staging:
            for name, content in files.items():
                (staging / name).write_bytes(content)
    except OSError as error:
        raise AdapterError(
            f"cannot write the adapter folder ({error.strerror or error})",
            value=str(folder),
            allowed="a folder that this user may write, on a disk with room",
            fix="choose another folder or free some space",
        ) from error


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


def parse_keys(
    tensors: Mapping[str, Tensor], source: str, prefixes: Sequence[str] = PREFIXES, *, alphas: bool = True
) -> tuple[str, dict[str, Pair]]:
    """Returns the prefix of a LoRA file and its modules, by what follows the prefix; every tensor is used.

    Args:
        tensors: the content of the file.
        source: its name, for messages.
        prefixes: those that are understood here.
        alphas: whether modules may have a key `.alpha`.

    Raises:
        AdapterError: if a key is of another kind, prefixes are mixed, or A comes without B.
    """
    _refuse_text_encoders(tensors, source)
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    strange: list[str] = []
    for key, tensor in tensors.items():
        prefix = next((each for each in prefixes if key.startswith(each)), None)
        match = _KEY.fullmatch(key.removeprefix(prefix or ""))
        if prefix is None or match is None or (match["side"] is None and not alphas):
            strange.append(key)
        else:
            module = found.setdefault(prefix, {}).setdefault(match["module"], {})
            module[_SIDES[match["side"]]] = tensor.float()
    lonely = [
        name
        for modules in found.values()
        for name, pair in modules.items()
        if not {"down", "up"} <= pair.keys()
    ]
    odd = (
        []
        if lonely
        else [name for modules in found.values() for name, pair in modules.items() if not _fit(pair)]
    )
    if strange or lonely or odd or len(found) != 1:
        raise AdapterError(
            f"unexpected content of {source}",
            value={
                "unknown keys": strange[:5],
                "modules without A or B": lonely[:5],
                "factors of different ranks": odd[:5],
                "prefixes": sorted(found),
            },
            allowed="plain LoRA: keys <prefix><module>.lora_A.weight and .lora_B.weight (or lora_down,"
            f" lora_up) in pairs, and one of the prefixes {', '.join(prefixes)}",
            fix="use a LoRA file of this kind, or convert it with the tool that wrote it",
        )
    ((prefix, modules),) = found.items()
    return prefix, {name: _pair(pair) for name, pair in modules.items()}


def _fit(pair: Mapping[str, Tensor]) -> bool:
    """Says whether A is [r, in] and B [out, r]; convolutions have four dimensions."""
    down, up = pair["down"], pair["up"]
    return down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1]


def _pair(tensors: Mapping[str, Tensor]) -> Pair:
    alpha = tensors.get("alpha")
    return Pair(tensors["down"], tensors["up"], None if alpha is None else float(alpha.item()))


def _refuse_text_encoders(tensors: Mapping[str, Tensor], source: str) -> None:
    of_text = [key for key in tensors if key.startswith(_OF_TEXT_ENCODERS)]
    if of_text:
        raise AdapterError(
            f"a LoRA that changes text encoders too: {source}",
            value=of_text[:3],
            allowed="LoRAs of the transformer alone, since prompts are encoded once for all policies",
            fix="use an adapter that was trained on the transformer alone",
        )
