"""How forward passes are computed: device, attention, compilation, number formats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn import functional

from flow_opd.backbones.attention import use_attention_backend
from flow_opd.backbones.pipeline import DiffusersBackbone
from flow_opd.config.common import ComputeSettings, TrainingComputeSettings
from flow_opd.errors import ConfigError

COMPILER = "inductor"  # of torch.compile
COMPILED_VARIANTS = 256  # of a block: one per adapter, kind of block and shape, with and without gradients


def choose_device(name: str) -> torch.device:
    """Returns the device that a setting means; 'auto' is the accelerator of this process, if there is one.

    Raises:
        ConfigError: if there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    usable = ["cpu"]
    if accelerator is not None:
        usable += [
            accelerator.type,
            *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())),
        ]
    if name not in usable:
        raise ConfigError(
            "'compute.device' names a device that is not here",
            value=name,
            allowed=", ".join(["auto", *usable]),
            fix="use one of these; a card that is missing here needs its driver, and torch built for it",
        )
    return torch.device(name)


def prepare(backbone: DiffusersBackbone, compute: ComputeSettings) -> None:
    """Applies the settings that belong to a base; the batching of guidance belongs to a policy.

    To be called before adapters are attached.

    Raises:
        ConfigError: if the base or this machine cannot do what is asked for.
    """
    transformer = backbone.transformer
    if compute.attention_backend is not None:
        use_attention_backend(transformer, compute.attention_backend)
    if isinstance(compute, TrainingComputeSettings) and compute.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    if compute.compile:
        _compile_blocks(transformer)
    if compute.vae_tiling:
        backbone.pipe.vae.enable_tiling()


def _compile_blocks(transformer: nn.Module) -> None:
    """Has each block compiled at its first call, when its adapters are in place.

    `compile_repeated_blocks` of diffusers refuses SD3, which does not list its blocks for it. An adapter
    that is switched on is another variant of a block; beyond dynamo's limit, which is 8 of them, a block
    would silently run uncompiled.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, COMPILED_VARIANTS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * COMPILED_VARIANTS)
    kinds: list[str] = transformer._no_split_modules  # type: ignore[assignment]
    for module in transformer.modules():
        if type(module).__name__ in kinds:
            module.compile(backend=COMPILER)


LAST = "proj_out"  # the projection that makes velocities, in every transformer of diffusers


def keep_float32_between_blocks(transformer: Any, embedders: Sequence[str]) -> None:
    """Has the sum that the blocks add to, and the last projection, in float32; for a network under autocast.

    Weights keep their format and their names.

    Args:
        transformer: a diffusers transformer in half precision, without adapters.
        embedders: its layers whose outputs the blocks start from.
    """
    for name in embedders:
        getattr(transformer, name).register_forward_hook(_in_float32)
    last = getattr(transformer, LAST)
    last.forward = partial(_project, last)


def _in_float32(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.float()


def _project(last: nn.Linear, hidden: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if last.bias is None else last.bias.float()
        return functional.linear(hidden.float(), last.weight.float(), bias)
