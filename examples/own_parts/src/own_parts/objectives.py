"""An objective that is a function: its keyword-only parameters are its settings."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flow_opd.types import TransitionBatch


def huber(
    student: Tensor, target: Tensor, batch: TransitionBatch, *, delta: Annotated[float, Field(gt=0)] = 1.0
) -> Tensor:
    """Returns the Huber distance of two velocities at each row, [M]: large gaps pull no harder than delta.

    Args:
        student: velocities [M, C, H, W], with gradient.
        target: those of the teacher, [M, C, H, W].
        batch: the states, should the distance depend on them.
        delta: gap of a latent dimension from which on the distance grows linearly.
    """
    loss = torch.nn.functional.huber_loss(student, target, reduction="none", delta=delta)
    return 2 * loss.flatten(1).mean(1)  # as |gap|^2 where gaps are small
