"""LoRA layers of PEFT in which each row of a batch may use an adapter of its own."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn import functional


class Route:
    """Which adapter acts on which rows of the next forward pass; all layers of a base share one route.

    Switching is one assignment, however many adapters and layers there are.
    """

    def __init__(self) -> None:
        """Starts at the bare base."""
        self.parts: tuple[tuple[str | None, int | None], ...] = ()
        """(name in PEFT, number of rows) of consecutive rows; a number of None means all rows."""


class RoutedLinear(Linear):  # type: ignore[misc]
    """PEFT's LoRA around a linear layer, whose forward pass follows a route.

    PEFT's own switching visits every adapter of every layer, so its cost grows with the square of the number
    of teachers. Its mixed batches copy the rows of each adapter out and back; here they are slices.
    """

    route: Route

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns W x + b + (alpha / rank) B A x with the A and B of each row.

        Args:
            x: [M, ..., in]; rows of several adapters must not need gradients.
            args, kwargs: of the layer inside.
        """
        result: Tensor = self.base_layer(x, *args, **kwargs)
        start = 0
        for name, rows in self.route.parts:
            stop = len(x) if rows is None else start + rows
            if name is not None and name in self.lora_A:
                if rows is None:
                    return self._with_delta(result, x, name)
                result[start:stop] = self._with_delta(result[start:stop], x[start:stop], name)
            start = stop
        return result

    def _with_delta(self, result: Tensor, x: Tensor, name: str) -> Tensor:
        """Returns the output with an adapter's delta added: PEFT's arithmetic, bit for bit, in place."""
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        delta = functional.linear(functional.linear(x.to(down.dtype), down), up)
        return delta.mul_(self.scaling[name]).add_(result).to(result.dtype)
