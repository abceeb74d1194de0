"""LoRA files of diffusers and of ComfyUI, written, and loaded again as these tools do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor, nn

from flow_opd.adapters.files import DIFFUSERS, KOHYA, METADATA_KEY, read_safetensors, write_files
from flow_opd.adapters.formats.mmdit import from_diffusers, original_state
from flow_opd.adapters.lora import Factors, LoraWeights, pack_factors
from flow_opd.adapters.peft_config import config_entries
from flow_opd.errors import AdapterError

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
COMFYUI_FILE = "comfyui_lora.safetensors"


def write_diffusers(lora: LoraWeights, folder: Path | str) -> None:
    """Writes `pytorch_lora_weights.safetensors` for `pipe.load_lora_weights(folder)`, metadata included.

    Raises:
        AdapterError: if the folder cannot be written.
    """
    config = {DIFFUSERS + key: value for key, value in config_entries(lora.settings).items()}
    header = {"format": "pt", METADATA_KEY: json.dumps(config, indent=2, sort_keys=True)}
    write_files(Path(folder), {DIFFUSERS_FILE: save(pack_factors(lora.factors, DIFFUSERS), metadata=header)})


def write_comfyui(lora: LoraWeights, folder: Path | str) -> None:
    """Writes `comfyui_lora.safetensors` of an SD3 LoRA, under the names of ComfyUI and kohya's scripts.

    Query, key and value are one layer there. Alpha stands beside each module: these loaders read no metadata.

    Raises:
        AdapterError: if a module has no name there, or the folder cannot be written.
    """
    parts = {name: Factors(down, up, lora.alpha) for name, (down, up) in lora.factors.items()}
    tensors = {}
    for name, part in sorted(from_diffusers(parts).items()):
        key = KOHYA + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = part.down.cpu().contiguous()
        tensors[f"{key}.lora_up.weight"] = part.up.cpu().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(part.alpha)
    write_files(Path(folder), {COMFYUI_FILE: save(tensors, metadata={"format": "pt"})})


def by_peft(transformer: nn.Module, folder: Path) -> nn.Module:
    """Returns the transformer with the adapter of a PEFT folder, by `PeftModel.from_pretrained`."""
    return cast(nn.Module, PeftModel.from_pretrained(transformer, folder).eval())


def by_diffusers(pipe: DiffusionPipeline, folder: Path) -> nn.Module:
    """Returns the pipeline's transformer after `pipe.load_lora_weights(folder)`."""
    pipe.load_lora_weights(str(folder))
    return cast(nn.Module, pipe.transformer)


def by_comfyui(transformer: nn.Module, file: Path) -> nn.Module:
    """Returns an SD3 transformer with its weights changed by ComfyUI's rule for `lora_unet_` keys.

    The weights get the names of the original checkpoint, where W += alpha / rank up down for every weight
    whose name, with _ for each dot, is in the file; then diffusers' own conversion reads them back. ComfyUI
    itself is not run.

    Raises:
        AdapterError: if a key of the file belongs to no weight; ComfyUI would only warn.
    """
    tensors, _ = read_safetensors(file)
    state = original_state(transformer.state_dict())
    for name, weight in state.items():
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        if name.endswith(".weight") and f"{key}.lora_up.weight" in tensors:
            up, down = tensors.pop(f"{key}.lora_up.weight"), tensors.pop(f"{key}.lora_down.weight")
            alpha = tensors.pop(f"{key}.alpha", None)
            scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
            state[name] = _changed(weight, scale * (up.float() @ down.float()))
    if tensors:
        raise AdapterError(
            "keys that ComfyUI would not load",
            value=sorted(tensors)[:5],
            allowed="lora_unet_<module of the original checkpoint>",
            fix="report this as a bug of the export",
        )
    transformer.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(state))
    return transformer


@torch.no_grad()
def fuse(transformer: nn.Module, lora: LoraWeights) -> None:
    """Adds the deltas of a LoRA to the weights of a bare transformer, in place."""
    for module in lora.factors:
        weight = cast(Tensor, transformer.get_submodule(module).weight)
        weight.copy_(_changed(weight, lora.delta(module)))


def _changed(weight: Tensor, delta: Tensor) -> Tensor:
    return (weight.float() + delta.to(weight.device)).to(weight.dtype)
