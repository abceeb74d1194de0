"""Classifier-free guidance."""

from __future__ import annotations

from torch import Tensor


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Returns v_u + scale (v_c - v_u); scale 1 is the conditional velocity itself.

    Source: Ho and Salimans, arXiv 2207.12598.
    """
    return unconditional + scale * (conditional - unconditional)
