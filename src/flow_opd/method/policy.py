"""A policy: one backbone, one of its adapters, one guidance scale."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor

from flow_opd.flow.path import guided
from flow_opd.protocols import Backbone, PromptEncoder
from flow_opd.types import Conditioning, Prompt


class Adapters(Protocol):
    """What policies need of an adapter bank."""

    def using(self, name: str | None) -> AbstractContextManager[None]:
        """Activates the adapter `name` (None = the bare base) inside the context."""
        ...

    def using_rows(self, parts: Sequence[tuple[str | None, int]]) -> AbstractContextManager[None]:
        """Activates an adapter for each part of the rows, (adapter, number of rows)."""
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
        collective: bool = False,
    ) -> None:
        """Names the policy; nothing is computed.

        Args:
            backbone: the shared base.
            adapters: the bank of the base; None where the base itself is trained.
            adapter: the adapter of this policy; None = the base.
            encoder: encodes the empty prompt of guidance; None = the base itself.
            guidance_scale: 1 = no guidance and half the cost; each policy has its own.
            guidance_batching: both halves of guidance in one forward pass, or one after the other.
            collective: runs a forward pass also for an empty batch, on a dummy row: processes that share a
                sharded base must all call it equally often, whatever their prompts.
        """
        self.backbone = backbone
        self.adapters = adapters
        self.adapter = adapter
        self.encoder: PromptEncoder = encoder or backbone
        self.guidance_scale = guidance_scale
        self.guidance_batching = guidance_batching
        self.collective = collective
        self._null: Conditioning | None = None

    @property
    def key(self) -> tuple[int, str | None, float]:
        """What policies on one base have in common if they give the same velocities."""
        return (id(self.backbone), self.adapter, self.guidance_scale)

    @property
    def is_guided(self) -> bool:
        """Says whether the empty prompt is evaluated, too."""
        return self.guidance_scale != 1.0

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the guided velocity, [M, C, H, W], float32; the caller decides about gradients."""
        with self.adapters.using(self.adapter) if self.adapters else nullcontext():
            if not self.is_guided:
                return self.backbone.velocity(latents, sigma, conditioning)
            null = self.null_conditioning(len(conditioning), latents.device)
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

    def null_conditioning(self, count: int, device: torch.device) -> Conditioning:
        """Returns the empty prompt, `count` rows; it is encoded once."""
        if self._null is None:
            with torch.no_grad():
                self._null = self.encoder.encode_prompts([Prompt(text="", task="")]).to(device)
        return self._null.repeated(count)


def policy_velocities(
    asked: Sequence[tuple[Policy, Tensor]], latents: Tensor, sigma: Tensor, conditioning: Conditioning
) -> list[Tensor]:
    """Returns the velocities of several policies of one base, each at its own rows, in one forward pass.

    With sequential guidance there is a second pass for the empty prompt.

    Args:
        asked: policies with the rows at which they are evaluated, [N] each, on the CPU.
        latents: x_sigma, [M, C, H, W].
        sigma: [M].
        conditioning: M rows.

    Returns:
        For each policy [N, C, H, W], float32, after its guidance.
    """
    first = asked[0][0]
    guided_ones = [(policy, rows) for policy, rows in asked if policy.is_guided]
    rows = torch.cat([rows for _, rows in asked])
    null_rows = torch.cat([rows for _, rows in guided_ones]) if guided_ones else rows[:0]
    parts = [(policy.adapter, len(rows)) for policy, rows in asked]
    null_parts = [(policy.adapter, len(rows)) for policy, rows in guided_ones]
    conditional = conditioning.rows(rows)
    null = guided_ones[0][0].null_conditioning(len(null_rows), latents.device) if guided_ones else None
    empty = latents[:0]
    if null is None:
        answers = _pass(first, latents, sigma, rows, conditional, parts)
    elif first.guidance_batching == "sequential":
        empty = _pass(first, latents, sigma, null_rows, null, null_parts)
        answers = _pass(first, latents, sigma, rows, conditional, parts)
    else:
        both = torch.cat([null_rows, rows])
        whole = Conditioning.cat([null, conditional])
        found = _pass(first, latents, sigma, both, whole, [*null_parts, *parts])
        empty, answers = found.split([len(null_rows), len(rows)])
    by_policy = iter(empty.split([len(rows) for _, rows in guided_ones]))
    return [
        guided(next(by_policy), answer, policy.guidance_scale) if policy.is_guided else answer
        for (policy, _), answer in zip(asked, answers.split([len(rows) for _, rows in asked]), strict=True)
    ]


def _pass(
    policy: Policy,
    latents: Tensor,
    sigma: Tensor,
    rows: Tensor,
    conditioning: Conditioning,
    parts: Sequence[tuple[str | None, int]],
) -> Tensor:
    """Returns the velocities at `rows`, which `parts` give to adapters."""
    if len(rows) == 0 and not policy.collective:
        return latents[:0]
    if len(rows) == 0:
        nothing = Conditioning(
            conditioning.embeds.new_zeros(1, *conditioning.embeds.shape[1:]),
            conditioning.pooled.new_zeros(1, *conditioning.pooled.shape[1:]),
            ("",),
        )
        first = torch.zeros(1, dtype=torch.long)
        return _pass(policy, latents, sigma, first, nothing, [(None, 1)])[:0]
    here = rows.to(latents.device)
    with policy.adapters.using_rows(parts) if policy.adapters else nullcontext():
        return policy.backbone.velocity(latents[here], sigma[here], conditioning)
