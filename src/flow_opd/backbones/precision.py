"""Half precision in products, float32 between them: what keeps the difference of two velocities.

Student and teacher differ by a tenth of a velocity or less, and guidance multiplies what rounding adds to
each. In a network that is half precision all through, most of that comes from the sum that all blocks add to,
and from the last projection; both are cheap in float32 (docs/limits.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LAST = "proj_out"  # the projection that makes velocities, in every transformer of diffusers


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
