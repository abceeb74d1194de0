"""Several velocity fields evaluated together: what they share is computed once, in one pass over the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_opd.method.policy import Policy, policy_velocities
from flow_opd.protocols import VelocityField
from flow_opd.types import Conditioning


@dataclass(frozen=True)
class FieldShare:
    """The share of a field in a target: its velocity at some rows, each times a weight."""

    field: VelocityField
    rows: Tensor  # [N], positions in the batch, int64, on the CPU; a row comes at most once
    weight: Tensor  # [N], on the CPU


def whole_share(field: VelocityField, rows: Tensor) -> list[FieldShare]:
    """Returns the target that is the field itself at `rows`, [N]."""
    return [FieldShare(field, rows, torch.ones(len(rows)))]


@torch.no_grad()
def joint_velocities(
    targets: Sequence[Sequence[FieldShare]], latents: Tensor, sigma: Tensor, conditioning: Conditioning
) -> list[Tensor]:
    """Returns the velocity of each target, [M, C, H, W], float32; 0 at rows in which no field has a share.

    All policies of the targets run in one forward pass (two where guidance is sequential), each at the
    rows where it is needed, and once where several targets need the same. For policies on a sharded base
    (`collective`) the number of passes depends on the targets' fields and not on their rows.

    Args:
        targets: each a sum of shares.
        latents: x_sigma, [M, C, H, W].
        sigma: [M].
        conditioning: M rows.
    """
    needed: dict[object, tuple[VelocityField, Tensor]] = {}  # key of a field -> field and rows, [M] bool
    for share in (share for target in targets for share in target):
        _, rows = needed.setdefault(
            _key(share.field), (share.field, torch.zeros(len(latents), dtype=torch.bool))
        )
        rows[share.rows] = True
    asked = {key: (field, torch.nonzero(rows).flatten()) for key, (field, rows) in needed.items()}
    answers = _answers(asked, latents, sigma, conditioning)
    return [_combined(target, asked, answers, latents) for target in targets]


def _key(field: VelocityField) -> object:
    """Returns what two fields share if they give the same velocities."""
    return field.key if isinstance(field, Policy) else id(field)


def _answers(
    asked: dict[object, tuple[VelocityField, Tensor]],
    latents: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
) -> dict[object, Tensor]:
    """Returns the velocities of each field at its own rows, [N, C, H, W]."""
    policies = {key: (field, rows) for key, (field, rows) in asked.items() if isinstance(field, Policy)}
    answers: dict[object, Tensor] = {}
    if policies:
        found = policy_velocities(list(policies.values()), latents, sigma, conditioning)
        answers |= dict(zip(policies, found, strict=True))
    for key, (field, rows) in asked.items():
        if key not in policies and len(rows) == 0:
            answers[key] = latents[:0]
        elif key not in policies:
            here = rows.to(latents.device)
            answers[key] = field.velocity(latents[here], sigma[here], conditioning.rows(rows))
    return answers


def _combined(
    target: Sequence[FieldShare],
    asked: dict[object, tuple[VelocityField, Tensor]],
    answers: dict[object, Tensor],
    latents: Tensor,
) -> Tensor:
    """Returns sum over shares of weight times velocity, [M, C, H, W]."""
    total = torch.zeros_like(latents, dtype=torch.float32)
    for share in target:
        key = _key(share.field)
        places = torch.searchsorted(asked[key][1], share.rows)
        weight = share.weight.to(latents.device).view(-1, 1, 1, 1)
        rows = share.rows.to(latents.device)
        total.index_add_(0, rows, weight * answers[key][places.to(latents.device)])
    return total


def velocity_of_states(
    field: VelocityField,
    latents: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    state_ids: Sequence[int] | None,
) -> Tensor:
    """Returns the field's velocity at every row, [M, C, H, W], evaluated once per distinct row (`state_ids`).

    The gradient at an evaluated row is the sum of those at the rows that it stands for.

    Args:
        field: the velocity field.
        latents: x_sigma, [M, C, H, W].
        sigma: [M].
        conditioning: M rows.
        state_ids: M numbers; rows of one number agree in everything above. None evaluates every row.
    """
    first: dict[int, int] = {}
    for row, number in enumerate(state_ids or ()):
        first.setdefault(number, row)
    if state_ids is None or len(first) == len(state_ids):
        return field.velocity(latents, sigma, conditioning)
    order = {number: place for place, number in enumerate(first)}
    asked = torch.tensor(list(first.values()), device=latents.device)
    places = torch.tensor([order[number] for number in state_ids], device=latents.device)
    return field.velocity(latents[asked], sigma[asked], conditioning.rows(list(first.values())))[places]
