"""Factors with a rank and an alpha of their own for each module, brought to one rank and one alpha."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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


class OneForm(NamedTuple):
    """The same deltas with one rank and one alpha for all, and what had to be done for that."""

    rank: int
    alpha: float
    factors: dict[str, tuple[Tensor, Tensor]]  # module -> A [rank, in], B [out, rank]
    notes: tuple[str, ...]


def one_form(parts: Mapping[str, Factors]) -> OneForm:
    """Returns factors of one rank and one alpha with the deltas of `parts`.

    Lower ranks are padded with zeros; another alpha / rank than that of most modules goes into B.
    """
    ranks = {part.rank for part in parts.values()}
    scales = Counter(part.scale for part in parts.values())
    first = next(iter(parts.values()))
    if len(ranks) == 1 and len(scales) == 1:
        factors = {module: (part.down, part.up) for module, part in parts.items()}
        return OneForm(first.rank, first.alpha, factors, ())
    rank, scale = max(ranks), max((scale for scale in scales if scale > 0), key=lambda each: scales[each])
    notes = []
    if len(ranks) > 1:
        notes.append(f"ranks differ by module ({min(ranks)} to {rank}): padded with zeros to {rank}")
    if len(scales) > 1:
        listed = ", ".join(f"{each:g}" for each in sorted(scales))
        notes.append(f"alpha / rank differs by module ({listed}): rescaled to {scale:g}")
    factors = {module: _fitted(part, rank, scale) for module, part in parts.items()}
    return OneForm(rank, scale * rank, factors, tuple(notes))


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
