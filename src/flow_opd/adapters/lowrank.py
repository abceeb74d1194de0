"""Weight changes as products of thin factors, so that a merge never needs the wide matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.linalg import eigh
from torch import Tensor

from flow_opd.adapters.lora import LoraWeights


class LowRank(NamedTuple):
    """A delta as the product up @ down, float64, with the LoRA's scale inside `up`."""

    up: Tensor  # [out, R]
    down: Tensor  # [R, in]

    @staticmethod
    def of(lora: LoraWeights, module: str) -> LowRank:
        """Returns the delta of one module of a LoRA."""
        down, up = lora.factors[module]
        return LowRank(lora.scale * up.cpu().double(), down.cpu().double())

    @staticmethod
    def stack(parts: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        """Returns sum_k w_k delta_k exactly: factors side by side, rank = sum of the ranks."""
        return LowRank(
            torch.cat([weight * part.up for part, weight in zip(parts, weights, strict=True)], dim=1),
            torch.cat([part.down for part in parts]),
        )

    @property
    def rank(self) -> int:
        """The number R of thin dimensions, at least the rank of the matrix."""
        return self.down.shape[0]

    def dense(self) -> Tensor:
        """Returns the delta, [out, in]."""
        return self.up @ self.down

    def inner(self, other: LowRank) -> float:
        """Returns the Frobenius inner product with another delta: tr(down' down^T up^T up')."""
        return float(((self.up.T @ other.up) * (self.down @ other.down.T)).sum())

    def singular(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns U [out, R'], S [R'] and V^T [R', in] of the delta: QR of both factors, then a small SVD."""
        up_q, up_r = torch.linalg.qr(self.up)
        down_q, down_r = torch.linalg.qr(self.down.T)
        left, values, right = torch.linalg.svd(up_r @ down_r.T, full_matrices=False)
        return up_q @ left, values, right @ down_q.T

    def truncated(self, rank: int) -> tuple[LowRank, float, float]:
        """Returns the nearest delta of at most `rank`, its energy and the energy lost; energy = |delta|^2.

        Source: Eckart and Young 1936. The square root of S goes to each factor, so that both train at
        the same rate.
        """
        left, values, right = self.singular()
        energy = values.square()
        root = values[:rank].sqrt()
        nearest = LowRank(left[:, :rank] * root, root[:, None] * right[:rank])
        return nearest, float(energy[:rank].sum()), float(energy[rank:].sum())


def nearest_to(delta: Tensor, rank: int) -> tuple[LowRank, float, float]:
    """Returns the nearest delta of at most `rank` to a dense one, its energy and the energy lost.

    The left singular vectors are the top eigenvectors of delta delta^T (or the right ones, where that is
    smaller). Asking for these alone takes a fraction of a whole decomposition, and the projection onto them
    is the nearest delta.

    Args:
        delta: [out, in], float64.
        rank: 1 and above.
    """
    if delta.shape[0] > delta.shape[1]:
        turned, kept, lost = nearest_to(delta.T, rank)
        return LowRank(turned.down.T, turned.up.T), kept, lost
    size = delta.shape[0]
    rank = min(rank, size)
    _, vectors = eigh((delta @ delta.T).numpy(), subset_by_index=(size - rank, size - 1))
    left = torch.from_numpy(vectors[:, ::-1].copy())
    right = left.T @ delta
    lengths = right.norm(dim=1)  # the singular values
    root = torch.where(lengths > 0, lengths.sqrt(), 1.0)
    energy, kept = float(delta.square().sum()), float(lengths.square().sum())
    return LowRank(left * root, right / root[:, None]), kept, max(energy - kept, 0.0)
