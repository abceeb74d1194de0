"""LoRA files of diffusers, with the metadata without which alpha silently becomes the rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from flow_opd.adapters.files import read_safetensors, write_folder
from flow_opd.adapters.lora import LoraWeights, pack_factors, peft_config, settings_from_peft, unpack_factors
from flow_opd.errors import AdapterError, explain

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_PREFIX = "transformer."
_METADATA_KEY = "lora_adapter_metadata"


def write_diffusers(lora: LoraWeights, folder: Path | str) -> None:
    """Writes `pytorch_lora_weights.safetensors` for `pipe.load_lora_weights(folder)`, metadata included.

    Raises:
        AdapterError: if the folder cannot be written.
    """
    config = {_PREFIX + key: value for key, value in peft_config(lora.settings).items()}
    header = {"format": "pt", _METADATA_KEY: json.dumps(config, indent=2, sort_keys=True)}
    write_folder(Path(folder), {DIFFUSERS_FILE: save(pack_factors(lora.factors, _PREFIX), metadata=header)})


def read_diffusers(folder: Path | str, alpha: float | None = None) -> LoraWeights:
    """Returns the LoRA of `pytorch_lora_weights.safetensors`.

    Args:
        folder: holds the file.
        alpha: for files of older tools, which do not say it; must not contradict a file that does.

    Raises:
        AdapterError: if the file is damaged or of another kind, or its alpha is unknown or contradicted.
    """
    path = Path(folder) / DIFFUSERS_FILE
    tensors, header = read_safetensors(path)
    factors = unpack_factors(tensors, _PREFIX, str(path))
    if _METADATA_KEY not in header:
        if alpha is None:
            raise AdapterError(
                explain(
                    "LoRA file without metadata, so its alpha is unknown",
                    value=str(path),
                    allowed="files with lora_adapter_metadata, or an alpha given by you",
                    fix="pass the alpha that the adapter was trained with; guessing rescales its effect",
                )
            )
        rank = next(iter(factors.values()))[0].shape[0]
        return LoraWeights(rank, alpha, factors)
    settings = settings_from_peft(_transformer_config(header[_METADATA_KEY]), str(path))
    if alpha is not None and alpha != settings.alpha:
        raise AdapterError(
            explain(
                f"alpha contradicts the metadata of {path}",
                value=alpha,
                allowed=f"{settings.alpha}, or none",
                fix="leave alpha out",
            )
        )
    return LoraWeights(settings.rank, settings.alpha, factors, settings.target_modules)


def peft_to_diffusers(source: Path | str, destination: Path | str) -> None:
    """Converts a PEFT folder into a diffusers LoRA folder.

    Raises:
        AdapterError: if the source does not hold a sound LoRA or the destination cannot be written.
    """
    write_diffusers(LoraWeights.read(source), destination)


def diffusers_to_peft(source: Path | str, destination: Path | str, alpha: float | None = None) -> None:
    """Converts a diffusers LoRA folder into a PEFT folder; `alpha` as in `read_diffusers`.

    Raises:
        AdapterError: if the source does not hold a sound LoRA or the destination cannot be written.
    """
    read_diffusers(source, alpha).write(destination)


def _transformer_config(metadata: str) -> dict[str, Any] | None:
    """Returns the transformer's part of the header's metadata, or None if that is not a JSON object."""
    try:
        config = json.loads(metadata)
    except ValueError:
        return None
    if not isinstance(config, dict):
        return None
    return {key.removeprefix(_PREFIX): value for key, value in config.items() if key.startswith(_PREFIX)}
