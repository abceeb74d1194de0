"""A LoRA in memory, without the model that it belongs to, and its PEFT folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from flow_opd.adapters.files import read_bytes, read_safetensors, write_folder
from flow_opd.adapters.settings import LoraSettings
from flow_opd.errors import AdapterError, explain

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PEFT_PREFIX = "base_model.model."

# Options that change what the factors mean; delta = (alpha / rank) B A holds for these values only.
_PLAIN = {
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "exclude_modules": None,
    "layers_to_transform": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "layer_replication": None,
}


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """The factors of a LoRA by module name: delta = (alpha / rank) B A."""

    rank: int
    alpha: float
    factors: Mapping[str, tuple[Tensor, Tensor]]  # module -> A [rank, in], B [out, rank]
    target_modules: tuple[str, ...] = ()  # as in LoraSettings; empty = the modules of `factors` by full name

    def __post_init__(self) -> None:
        """Checks that factors, rank and targets belong together.

        Raises:
            AdapterError: if a factor has another rank or is not finite, or targets and modules differ.
        """
        if not self.target_modules:
            object.__setattr__(self, "target_modules", tuple(sorted(self.factors)))
        settings = self.settings
        for module, (down, up) in self.factors.items():
            if down.ndim != 2 or up.ndim != 2 or down.shape[0] != self.rank or up.shape[1] != self.rank:
                raise AdapterError(
                    explain(
                        f"LoRA factors of {module} do not have the rank of their config",
                        value=f"A {list(down.shape)}, B {list(up.shape)}",
                        allowed=f"A [{self.rank}, in], B [out, {self.rank}]",
                        fix="use the adapter_config.json that was saved with these weights",
                    )
                )
            if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
                raise AdapterError(
                    explain(
                        "LoRA factors that are not finite numbers",
                        value=module,
                        allowed="finite numbers",
                        fix="use an earlier checkpoint of this adapter",
                    )
                )
        strangers = [module for module in self.factors if not settings.targets(module)]
        unused = settings.unmatched(self.factors)
        if strangers or unused:
            raise AdapterError(
                explain(
                    "LoRA weights and target_modules differ",
                    value={"weights without target": strangers[:5], "targets without weights": unused[:5]},
                    allowed="weights for exactly the modules that target_modules name",
                    fix="use the adapter_config.json that was saved with these weights",
                )
            )

    @property
    def settings(self) -> LoraSettings:
        """The settings that a fresh LoRA of the same form would have."""
        return LoraSettings(self.rank, self.alpha, self.target_modules)

    @property
    def scale(self) -> float:
        """The factor alpha / rank in front of B A."""
        return self.alpha / self.rank

    def delta(self, module: str) -> Tensor:
        """Returns the weight change (alpha / rank) B A of `module`, [out, in], float32."""
        down, up = self.factors[module]
        return self.scale * (up.float() @ down.float())

    def write(self, folder: Path | str, base_model: str | None = None) -> None:
        """Writes a PEFT folder, complete or not at all.

        Args:
            folder: created if it does not exist.
            base_model: name of the base for adapter_config.json, for example a hub id.

        Raises:
            AdapterError: if the folder cannot be written.
        """
        config = peft_config(self.settings) | {"base_model_name_or_path": base_model}
        write_folder(
            Path(folder),
            {
                WEIGHTS_FILE: save(pack_factors(self.factors, PEFT_PREFIX), metadata={"format": "pt"}),
                CONFIG_FILE: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
            },
        )

    @staticmethod
    def read(folder: Path | str) -> LoraWeights:
        """Returns the LoRA of a PEFT folder, in float32 on the CPU, with rank and alpha of its own config.

        Raises:
            AdapterError: if a file is missing or damaged, or weights and config do not belong together.
        """
        path = Path(folder) / CONFIG_FILE
        try:
            config = json.loads(read_bytes(path))
        except ValueError as error:
            raise AdapterError(
                explain(
                    f"adapter config is not JSON ({error})",
                    value=str(path),
                    allowed="the JSON object that PEFT writes",
                    fix="copy or download the file again",
                )
            ) from error
        settings = settings_from_peft(config, str(path))
        tensors, _ = read_safetensors(Path(folder) / WEIGHTS_FILE)
        factors = unpack_factors(tensors, PEFT_PREFIX, str(Path(folder) / WEIGHTS_FILE))
        return LoraWeights(settings.rank, settings.alpha, factors, settings.target_modules)


def pack_factors(factors: Mapping[str, tuple[Tensor, Tensor]], prefix: str) -> dict[str, Tensor]:
    """Returns the factors under the names of a LoRA file, `<prefix><module>.lora_A.weight`, sorted."""
    packed: dict[str, Tensor] = {}
    for module in sorted(factors):
        down, up = factors[module]
        packed[f"{prefix}{module}.lora_A.weight"] = down.detach().cpu().contiguous()
        packed[f"{prefix}{module}.lora_B.weight"] = up.detach().cpu().contiguous()
    return packed


def unpack_factors(
    tensors: Mapping[str, Tensor], prefix: str, source: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns A and B by module, float32, from the tensors of a LoRA file; every tensor must be used.

    Raises:
        AdapterError: if a key is of another kind, or A comes without B.
    """
    form = re.compile(re.escape(prefix) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
    sides: dict[str, dict[str, Tensor]] = {}
    strange: list[str] = []
    for key, tensor in tensors.items():
        match = form.fullmatch(key)
        if match is None:
            strange.append(key)
        else:
            sides.setdefault(match["module"], {})[match["side"]] = tensor.float()
    lonely = [module for module, pair in sides.items() if len(pair) == 1]
    if strange or lonely or not sides:
        raise AdapterError(
            explain(
                f"unexpected content of {source}",
                value={
                    "unknown keys": strange[:5],
                    "modules without A or B": lonely[:5],
                    "modules": len(sides),
                },
                allowed=f"keys {prefix}<module>.lora_A.weight and .lora_B.weight, in pairs",
                fix="use a LoRA file of this format, or convert it first",
            )
        )
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def peft_config(settings: LoraSettings) -> dict[str, Any]:
    """Returns the entries of adapter_config.json that every PEFT release since 2024 reads."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(settings.target_modules),
        "init_lora_weights": True,
        "fan_in_fan_out": False,
        "bias": "none",
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
    }


def settings_from_peft(config: Any, source: str) -> LoraSettings:
    """Returns rank, alpha and targets of a PEFT config; null base and task type are fine.

    Raises:
        AdapterError: if an entry is missing, has the wrong type, or asks for another kind of LoRA.
    """
    entries: dict[str, Any] = config if isinstance(config, dict) else {}
    rank, alpha, targets = entries.get("r"), entries.get("lora_alpha"), entries.get("target_modules")
    if not (
        isinstance(rank, int)
        and isinstance(alpha, int | float)
        and isinstance(targets, list)
        and entries.get("peft_type", "LORA") == "LORA"
    ):
        raise AdapterError(
            explain(
                f"not the config of a LoRA: {source}",
                value={"r": rank, "lora_alpha": alpha, "target_modules": targets},
                allowed="peft_type LORA, a whole number r, a number lora_alpha, a list target_modules",
                fix="use the adapter_config.json that PEFT saved with the weights",
            )
        )
    other = {
        key: entries[key] for key, plain in _PLAIN.items() if entries.get(key, plain) not in (plain, None, [])
    }
    if other:
        raise AdapterError(
            explain(
                f"a LoRA with options that are not supported: {source}",
                value=other,
                allowed="plain LoRA: one rank and one alpha, no DoRA, no rsLoRA, no biases",
                fix="convert the adapter to a plain LoRA with PEFT first",
            )
        )
    return LoraSettings(rank, float(alpha), tuple(sorted(targets)))
