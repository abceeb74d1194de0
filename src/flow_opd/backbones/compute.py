"""How forward passes are computed: device, attention, compilation, number formats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch._dynamo
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

from flow_opd.backbones.pipeline import DiffusersBackbone
from flow_opd.config.common import ComputeSettings, TrainingComputeSettings
from flow_opd.errors import ConfigError, nearest
from flow_opd.quiet import quiet_loading

LAST = "proj_out"  # the projection that makes velocities, in every transformer of diffusers
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


def use_attention_backend(transformer: nn.Module, name: str) -> None:
    """Makes every attention of a transformer use one of diffusers' implementations.

    Args:
        transformer: of diffusers, without adapters.
        name: as in `diffusers.models.attention_dispatch.AttentionBackendName`, "flash" for example.

    Raises:
        ConfigError: if there is no such implementation, it is not installed, or the transformer ignores it.
    """
    known = sorted(backend.value for backend in AttentionBackendName)
    if name not in known:
        raise _refusal("unknown name", name, ", ".join(known), f"use one of these.{nearest(name, known)}")
    for module in transformer.modules():
        if isinstance(module, Attention) and isinstance(module.processor, JointAttnProcessor2_0):
            module.set_processor(DispatchedJointAttention())
    processors = [module.processor for module in transformer.modules() if hasattr(module, "processor")]
    if not all(hasattr(processor, "_attention_backend") for processor in processors):
        raise _refusal("this base takes no other", name, "null", "leave it out")
    try:
        with quiet_loading():
            transformer.set_attention_backend(name)  # type: ignore[operator]
    except (RuntimeError, ImportError, OSError, ValueError) as missing:
        fix = "install what it needs, or leave it out: torch then chooses by itself"
        raise _refusal(
            f"it cannot be used here ({missing})", name, "null, or 'native', which works everywhere", fix
        ) from missing


class DispatchedJointAttention:
    """What diffusers' `JointAttnProcessor2_0` computes, by the attention implementation that was chosen.

    That processor always calls torch's `scaled_dot_product_attention`: `set_attention_backend` has no
    effect on it, and says nothing.
    """

    _attention_backend: AttentionBackendName | None = None  # set by `set_attention_backend`
    _parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the output for image tokens, [M, N, D], and for text tokens where there are any."""
        image_tokens = hidden_states.shape[1]
        image = (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        query, key, value = _heads(attn, image, attn.norm_q, attn.norm_k)
        if encoder_hidden_states is not None:
            text = (
                attn.add_q_proj(encoder_hidden_states),
                attn.add_k_proj(encoder_hidden_states),
                attn.add_v_proj(encoder_hidden_states),
            )
            added = _heads(attn, text, attn.norm_added_q, attn.norm_added_k)
            query, key, value = (
                torch.cat([own, other], dim=1) for own, other in zip((query, key, value), added, strict=True)
            )
        mixed = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        mixed = mixed.flatten(2).to(query.dtype)
        output = attn.to_out[1](attn.to_out[0](mixed[:, :image_tokens]))
        if encoder_hidden_states is None:
            return output
        rest = mixed[:, image_tokens:]
        return output, rest if attn.context_pre_only else attn.to_add_out(rest)


def _heads(
    attn: Attention,
    projected: tuple[Tensor, Tensor, Tensor],
    norm_query: nn.Module | None,
    norm_key: nn.Module | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns query, key and value as [M, N, heads, D / heads], query and key normalised."""
    query, key, value = (each.unflatten(-1, (attn.heads, -1)) for each in projected)
    return (
        query if norm_query is None else norm_query(query),
        key if norm_key is None else norm_key(key),
        value,
    )


def _refusal(why: str, name: str, allowed: str, fix: str) -> ConfigError:
    return ConfigError(f"'compute.attention_backend': {why}", value=name, allowed=allowed, fix=fix)
