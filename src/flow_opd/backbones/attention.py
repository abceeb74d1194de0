"""The choice of an attention implementation, also for SD3, whose own processor offers none."""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor, nn

from flow_opd.errors import ConfigError, nearest
from flow_opd.quiet import quiet_loading


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
