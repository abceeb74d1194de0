"""Rows that have the same state under the same prompt are asked once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flow_opd.protocols import VelocityField
from flow_opd.types import Conditioning


def velocity_of_alike(
    field: VelocityField,
    latents: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    alike: Sequence[int] | None,
) -> Tensor:
    """Returns the field's velocity at every row, [M, C, H, W], from one row of each number in `alike`.

    The gradient at a row that was asked is the sum of those at the rows that it stands for.

    Args:
        field: is asked.
        latents: x_sigma, [M, C, H, W].
        sigma: [M].
        conditioning: M rows.
        alike: M numbers; rows of one number agree in everything above. None asks every row.
    """
    first: dict[int, int] = {}
    for row, number in enumerate(alike or ()):
        first.setdefault(number, row)
    if alike is None or len(first) == len(alike):
        return field.velocity(latents, sigma, conditioning)
    order = {number: place for place, number in enumerate(first)}
    asked = torch.tensor(list(first.values()), device=latents.device)
    places = torch.tensor([order[number] for number in alike], device=latents.device)
    return field.velocity(latents[asked], sigma[asked], conditioning.rows(list(first.values())))[places]
