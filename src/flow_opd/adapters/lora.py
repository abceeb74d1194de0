"""A LoRA in memory, without the model that it belongs to; its PEFT folder; whether it fits a base."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from flow_opd.adapters.files import PEFT, parse_keys, read_bytes, read_safetensors, write_files
from flow_opd.adapters.peft_config import PeftConfig, config_entries
from flow_opd.config.common import LoraSettings
from flow_opd.errors import AdapterError, nearest

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True, eq=False)
class Factors:
    """The two factors of one module: delta = (alpha / r) B A."""

    down: Tensor  # A [r, in]
    up: Tensor  # B [out, r]
    alpha: float

    @property
    def rank(self) -> int:
        """The inner dimension r."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor alpha / r in front of B A."""
        return self.alpha / self.rank


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """The factors of a LoRA by module name: delta = (alpha / rank) B A."""

    rank: int
    alpha: float
    factors: Mapping[str, tuple[Tensor, Tensor]]  # module -> A [rank, in], B [out, rank]
    target_modules: tuple[str, ...] = ()  # as in LoraSettings; empty = the modules of `factors` by full name
    base_model: str | None = None  # name of the base, where it is known
    notes: tuple[str, ...] = ()  # what was changed when it was read

    def __post_init__(self) -> None:
        """Checks that factors, rank and targets belong together.

        Raises:
            AdapterError: if rank or alpha is no number that a LoRA can have, a factor has another rank or is
                not finite, or targets and modules differ.
        """
        if self.rank < 1 or not (math.isfinite(self.alpha) and self.alpha > 0) or not self.factors:
            raise AdapterError(
                "not a LoRA",
                value={"rank": self.rank, "alpha": self.alpha, "modules": len(self.factors)},
                allowed="a rank from 1, a finite alpha above 0, and factors of one module or more",
                fix="use the adapter_config.json that was saved with these weights",
            )
        if not self.target_modules:
            object.__setattr__(self, "target_modules", tuple(sorted(self.factors)))
        settings = self.settings
        for module, (down, up) in self.factors.items():
            _check_factors(module, down, up, self.rank)
        strangers = [module for module in self.factors if not settings.targets(module)]
        unused = settings.unmatched(self.factors)
        if strangers or unused:
            raise AdapterError(
                "LoRA weights and target_modules differ",
                value={"weights without target": strangers[:5], "targets without weights": unused[:5]},
                allowed="weights for exactly the modules that target_modules name",
                fix="use the adapter_config.json that was saved with these weights",
            )

    @property
    def settings(self) -> LoraSettings:
        """The settings (rank, alpha, targets) of a fresh LoRA of the same shape."""
        return LoraSettings(rank=self.rank, alpha=self.alpha, target_modules=self.target_modules)

    @property
    def scale(self) -> float:
        """The factor alpha / rank in front of B A."""
        return self.alpha / self.rank

    def delta(self, module: str) -> Tensor:
        """Returns the weight change (alpha / rank) B A of `module`, [out, in], float32."""
        down, up = self.factors[module]
        return self.scale * (up.float() @ down.float())

    def digest(self) -> str:
        """Returns a hash of rank, alpha and all factors."""
        found = hashlib.sha256(f"{self.rank} {self.alpha}".encode())
        for key, tensor in pack_factors(self.factors, "").items():
            found.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def write(self, folder: Path | str, base_model: str | None = None) -> None:
        """Writes a PEFT folder, complete or not at all.

        Args:
            folder: created if it does not exist.
            base_model: name of the base for adapter_config.json; None takes what the LoRA knows.

        Raises:
            AdapterError: if the folder cannot be written.
        """
        config = config_entries(self.settings) | {"base_model_name_or_path": base_model or self.base_model}
        write_files(
            Path(folder),
            {
                WEIGHTS_FILE: save(pack_factors(self.factors, PEFT), metadata={"format": "pt"}),
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
            entries = json.loads(read_bytes(path))
        except ValueError as error:
            raise AdapterError(
                f"adapter config is not JSON ({error})",
                value=str(path),
                allowed="the JSON object that PEFT writes",
                fix="copy or download the file again",
            ) from error
        config = PeftConfig.of(entries, str(path))
        weights = Path(folder) / WEIGHTS_FILE
        _, pairs = parse_keys(read_safetensors(weights)[0], str(weights), (PEFT,), alphas=False)
        return LoraWeights.of({name: (pair.down, pair.up) for name, pair in pairs.items()}, config)

    @staticmethod
    def of(factors: Mapping[str, tuple[Tensor, Tensor]], config: PeftConfig) -> LoraWeights:
        """Returns the LoRA that factors A and B and a configuration describe.

        Raises:
            AdapterError: if a factor is not finite or has another rank than the configuration says, or
                targets and modules differ.
        """
        for module, (down, up) in factors.items():
            _check_factors(module, down, up, config.rank_of(module))
        parts = {name: Factors(down, up, config.alpha_of(name)) for name, (down, up) in factors.items()}
        return LoraWeights.uniform(parts, config.targets, config.base_model)

    @staticmethod
    def uniform(
        parts: Mapping[str, Factors], target_modules: tuple[str, ...] = (), base_model: str | None = None
    ) -> LoraWeights:
        """Returns the LoRA of one rank and alpha with the deltas of `parts`; its notes say what that took.

        Lower ranks are padded with zeros; another alpha / rank than that of most modules goes into B.

        Raises:
            AdapterError: as for every LoRA.
        """
        ranks = {part.rank for part in parts.values()}
        scales = Counter(part.scale for part in parts.values())
        rank, alpha, notes = max(ranks), next(iter(parts.values())).alpha, []
        factors = {module: (part.down, part.up) for module, part in parts.items()}
        if len(ranks) > 1 or len(scales) > 1:
            scale = max((scale for scale in scales if scale > 0), key=lambda each: scales[each])
            alpha, factors = scale * rank, {name: _fitted(part, rank, scale) for name, part in parts.items()}
        if len(ranks) > 1:
            notes.append(f"ranks differ by module ({min(ranks)} to {rank}): padded with zeros to {rank}")
        if len(scales) > 1:
            listed = ", ".join(f"{each:g}" for each in sorted(scales))
            notes.append(f"alpha / rank differs by module ({listed}): rescaled to {scale:g}")
        return LoraWeights(rank, alpha, factors, target_modules, base_model, notes=tuple(notes))


def _fitted(part: Factors, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Returns A and B of the same delta, of that rank and for that alpha / rank."""
    up = part.up if part.scale == scale else part.up * (part.scale / scale)
    if part.rank == rank:
        return part.down, up
    missing = rank - part.rank
    return (
        torch.cat([part.down, part.down.new_zeros(missing, part.down.shape[1])]),
        torch.cat([up, up.new_zeros(up.shape[0], missing)], dim=1),
    )


def pack_factors(factors: Mapping[str, tuple[Tensor, Tensor]], prefix: str) -> dict[str, Tensor]:
    """Returns the factors under the names of a LoRA file, `<prefix><module>.lora_A.weight`, sorted."""
    packed: dict[str, Tensor] = {}
    for module in sorted(factors):
        down, up = factors[module]
        packed[f"{prefix}{module}.lora_A.weight"] = down.detach().cpu().contiguous()
        packed[f"{prefix}{module}.lora_B.weight"] = up.detach().cpu().contiguous()
    return packed


def _check_factors(module: str, down: Tensor, up: Tensor, rank: int) -> None:
    """Raises AdapterError unless A is [rank, in], B is [out, rank], and both are finite."""
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != rank or up.shape[1] != rank:
        raise AdapterError(
            f"LoRA factors of {module} do not have the rank of their config",
            value=f"A {list(down.shape)}, B {list(up.shape)}",
            allowed=f"A [{rank}, in], B [out, {rank}]",
            fix="use the adapter_config.json that was saved with these weights",
        )
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise AdapterError(
            "LoRA factors that are not finite numbers",
            value=module,
            allowed="finite numbers",
            fix="use an earlier checkpoint of this adapter",
        )


def targeted_linears(modules: Mapping[str, nn.Module], settings: LoraSettings) -> dict[str, nn.Linear]:
    """Returns the linear layers among `modules` that the settings target, by name.

    Raises:
        AdapterError: if a target names nothing here, or something that is not a linear layer.
    """
    matched = {module: layer for module, layer in modules.items() if settings.targets(module)}
    absent = settings.unmatched(matched)
    other = [module for module, layer in matched.items() if not isinstance(layer, nn.Linear)]
    if absent or other:
        raise AdapterError(
            "target modules that this base cannot adapt",
            value={"not in this base": absent[:5], "not linear": other[:5]},
            allowed="names or dotted endings of its linear layers",
            fix=f"correct target_modules.{nearest(absent[0], modules) if absent else ''}",
        )
    return {module: layer for module, layer in matched.items() if isinstance(layer, nn.Linear)}


def check_fit(lora: LoraWeights, linears: Mapping[str, nn.Linear]) -> None:
    """Passes if `lora` holds factors for exactly these layers, in their widths.

    Raises:
        AdapterError: if modules are missing or unknown, or a width differs.
    """
    missing = sorted(linears.keys() - lora.factors.keys())
    extra = sorted(lora.factors.keys() - linears.keys())
    if missing or extra:
        raise AdapterError(
            "LoRA that does not cover the modules of this base",
            value={"missing": missing[:5], "not in this base": extra[:5]},
            allowed=f"weights for the {len(linears)} modules that its targets name here",
            fix="use an adapter of this base",
        )
    for module, linear in linears.items():
        down, up = lora.factors[module]
        if (up.shape[0], down.shape[1]) != (linear.out_features, linear.in_features):
            raise AdapterError(
                f"LoRA of another base: its width differs at {module}",
                value=[up.shape[0], down.shape[1]],
                allowed=f"[{linear.out_features}, {linear.in_features}]",
                fix="use an adapter of this base",
            )
