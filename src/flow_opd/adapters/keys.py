"""How LoRA files call their tensors: `<prefix><module>.lora_A.weight` and its relatives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from flow_opd.errors import AdapterError

PEFT = "base_model.model."  # PEFT: then the module of diffusers
DIFFUSERS = "transformer."  # diffusers: then the module of diffusers
ONE_TRAINER = "lora_transformer_"  # OneTrainer: the module of diffusers with _ for each dot
COMFYUI = "diffusion_model."  # ComfyUI's own: the module of the original checkpoint
KOHYA = "lora_unet_"  # kohya's scripts, ComfyUI: the module of the original checkpoint with _ for each dot
PREFIXES = (PEFT, DIFFUSERS, ONE_TRAINER, COMFYUI, KOHYA)

_FORM = re.compile(r"(?P<module>.+)\.(?:lora_(?P<side>A|B|down|up)\.weight|alpha)")
_SIDES = {"A": "down", "down": "down", "B": "up", "up": "up", None: "alpha"}
_OF_TEXT_ENCODERS = ("text_encoder", "lora_te")


class Pair(NamedTuple):
    """What a file holds of one module."""

    down: Tensor  # A [r, in], float32
    up: Tensor  # B [out, r], float32
    alpha: float | None  # of this module, where the file has a key for it


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
        match = _FORM.fullmatch(key.removeprefix(prefix or ""))
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
