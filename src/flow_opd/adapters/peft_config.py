"""The configuration of a LoRA as PEFT writes it, of any version: what it says, and what must be refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flow_opd.config.common import LoraSettings
from flow_opd.errors import AdapterError

# Entries that do not change what the factors mean, or that `PeftConfig` reads. Every other entry has to be
# off: an option of a later version is refused, not ignored.
_UNDERSTOOD = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
_OFF: tuple[Any, ...] = (None, False, [], {}, "", "none")
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts that take from the base weights


@dataclass(frozen=True)
class PeftConfig:
    """Rank, alpha and targets of a LoRA, for all modules and for some."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # as in LoraSettings; empty where only the weights can tell
    ranks: Mapping[str, int] = field(default_factory=dict)  # pattern -> rank
    alphas: Mapping[str, float] = field(default_factory=dict)  # pattern -> alpha
    rslora: bool = False  # delta = alpha / sqrt(rank) B A
    base_model: str | None = None

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module's factors."""
        pattern = _matching(self.ranks, module)
        return self.rank if pattern is None else self.ranks[pattern]

    def alpha_of(self, module: str) -> float:
        """Returns the alpha of a module, so that delta = (alpha / rank) B A, whatever the scaling."""
        pattern = _matching(self.alphas, module)
        alpha = self.alpha if pattern is None else self.alphas[pattern]
        return alpha * math.sqrt(self.rank_of(module)) if self.rslora else alpha

    @staticmethod
    def of(config: Any, source: str) -> PeftConfig:
        """Returns what a configuration says; null base and task type are fine, as is a regular expression.

        Raises:
            AdapterError: if an entry is missing, has the wrong type, or describes another kind of LoRA.
        """
        entries: dict[str, Any] = config if isinstance(config, dict) else {}
        rank, alpha, targets = entries.get("r"), entries.get("lora_alpha"), entries.get("target_modules")
        ranks, alphas = entries.get("rank_pattern") or {}, entries.get("alpha_pattern") or {}
        if not (
            isinstance(rank, int)
            and rank >= 1
            and isinstance(alpha, int | float)
            and 0 < alpha < math.inf
            and isinstance(targets, list | str)
            and all(isinstance(each, int) for each in ranks.values())
            and all(isinstance(each, int | float) for each in alphas.values())
            and entries.get("peft_type", "LORA") == "LORA"
        ):
            raise AdapterError(
                f"not the config of a LoRA: {source}",
                value={"r": rank, "lora_alpha": alpha, "target_modules": targets},
                allowed="peft_type LORA, a whole number r and a lora_alpha above 0, and target_modules",
                fix="use the adapter_config.json that PEFT saved with the weights",
            )
        _refuse_other_kinds(entries, source)
        narrowed = isinstance(targets, str) or entries.get("exclude_modules") not in _OFF
        return PeftConfig(
            rank,
            float(alpha),
            () if narrowed else tuple(sorted(targets)),
            ranks=ranks,
            alphas=alphas,
            rslora=bool(entries.get("use_rslora")),
            base_model=entries.get("base_model_name_or_path"),
        )


def config_entries(settings: LoraSettings) -> dict[str, Any]:
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


def _refuse_other_kinds(entries: Mapping[str, Any], source: str) -> None:
    other = {key: value for key, value in entries.items() if key not in _UNDERSTOOD and value not in _OFF}
    start = entries.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_THE_BASE):
        other["init_lora_weights"] = start
    if other:
        raise AdapterError(
            f"a LoRA with options that are not supported: {source}",
            value=other,
            allowed="plain LoRA, a multiple of B A: no DoRA, no biases, no start that changes the base",
            fix="convert the adapter to a plain LoRA with PEFT first",
        )


def _matching(patterns: Mapping[str, Any], module: str) -> str | None:
    """Returns the first pattern that PEFT would apply to a module."""
    return next((each for each in patterns if re.match(rf"(.*\.)?({each})$", module)), None)
