"""The check that a LoRA fits this base, before anything is attached."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from flow_opd.adapters.form import LoraForm
from flow_opd.adapters.lora import LoraWeights
from flow_opd.errors import AdapterError, explain, nearest


def targeted_linears(modules: Mapping[str, nn.Module], settings: LoraForm) -> dict[str, nn.Linear]:
    """Returns the linear layers among `modules` that the settings target, by name.

    Raises:
        AdapterError: if a target names nothing here, or something that is not a linear layer.
    """
    matched = {module: layer for module, layer in modules.items() if settings.targets(module)}
    absent = settings.unmatched(matched)
    other = [module for module, layer in matched.items() if not isinstance(layer, nn.Linear)]
    if absent or other:
        raise AdapterError(
            explain(
                "target modules that this base cannot adapt",
                value={"not in this base": absent[:5], "not linear": other[:5]},
                allowed="names or dotted endings of its linear layers",
                fix=f"correct target_modules.{nearest(absent[0], modules) if absent else ''}",
            )
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
            explain(
                "LoRA that does not cover the modules of this base",
                value={"missing": missing[:5], "not in this base": extra[:5]},
                allowed=f"weights for the {len(linears)} modules that its targets name here",
                fix="use an adapter of this base",
            )
        )
    for module, linear in linears.items():
        down, up = lora.factors[module]
        if (up.shape[0], down.shape[1]) != (linear.out_features, linear.in_features):
            raise AdapterError(
                explain(
                    f"LoRA of another base: its width differs at {module}",
                    value=[up.shape[0], down.shape[1]],
                    allowed=f"[{linear.out_features}, {linear.in_features}]",
                    fix="use an adapter of this base",
                )
            )
