"""LoRA files of diffusers and of ComfyUI, each with what its loader needs to take the right alpha."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from flow_opd.adapters.files import DIFFUSERS, KOHYA, write_files
from flow_opd.adapters.formats.mmdit import from_diffusers
from flow_opd.adapters.lora import Factors, LoraWeights, pack_factors
from flow_opd.adapters.peft_config import config_entries

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
COMFYUI_FILE = "comfyui_lora.safetensors"
METADATA_KEY = "lora_adapter_metadata"  # in the header of a diffusers file: the config of PEFT as JSON


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
