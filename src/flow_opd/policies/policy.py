"""A policy: one backbone, one of its adapters, one guidance scale."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor

from flow_opd.flow.guidance import guided
from flow_opd.protocols import Backbone, PromptEncoder
from flow_opd.types import Conditioning, Prompt


class Adapters(Protocol):
    """What a policy needs of an adapter bank."""

    def using(self, name: str | None) -> AbstractContextManager[None]:
        """Activates the adapter `name` (None = the bare base) inside the context."""
        ...


class Policy:
    """A velocity field: the backbone under one adapter, with classifier-free guidance."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        adapters: Adapters | None = None,
        adapter: str | None = None,
        encoder: PromptEncoder | None = None,
        guidance_scale: float = 1.0,
        guidance_batching: Literal["batched", "sequential"] = "batched",
    ) -> None:
        """Names the policy; nothing is computed.

        Args:
            backbone: the shared base.
            adapters: the bank of the base; None where the base itself is trained.
            adapter: the adapter of this policy; None = the base.
            encoder: encodes the empty prompt of guidance; None = the base itself.
            guidance_scale: 1 = no guidance and half the cost; each policy has its own.
            guidance_batching: both halves of guidance in one forward pass, or one after the other.
        """
        self.backbone = backbone
        self.adapters = adapters
        self.adapter = adapter
        self.encoder: PromptEncoder = encoder or backbone
        self.guidance_scale = guidance_scale
        self.guidance_batching = guidance_batching
        self._null: Conditioning | None = None

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the guided velocity, [M, C, H, W], float32; the caller decides about gradients."""
        with self.adapters.using(self.adapter) if self.adapters else nullcontext():
            if self.guidance_scale == 1.0:
                return self.backbone.velocity(latents, sigma, conditioning)
            null = self._null_conditioning().rows([0] * len(conditioning))
            if self.guidance_batching == "sequential":
                unconditional = self.backbone.velocity(latents, sigma, null)
                conditional = self.backbone.velocity(latents, sigma, conditioning)
            else:
                both = self.backbone.velocity(
                    torch.cat([latents, latents]),
                    torch.cat([sigma, sigma]),
                    Conditioning.cat([null, conditioning]),
                )
                unconditional, conditional = both.chunk(2)
            return guided(unconditional, conditional, self.guidance_scale)

    def _null_conditioning(self) -> Conditioning:
        if self._null is None:
            with torch.no_grad():
                self._null = self.encoder.encode_prompts([Prompt(text="", task="")])
        return self._null
