"""Bytes of a training by part, and what to change where they do not fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from flow_opd.config.common import OptimizerSettings
from flow_opd.planning.machines import GIB, RESERVE

FLOAT32 = 4  # bytes
SMALLEST_8BIT = 4096  # numbers; bitsandbytes keeps the moments of smaller tensors in 32 bits
BLOCK_8BIT = 256  # numbers that share one float32 scale in bitsandbytes' 8-bit moments


@dataclass(frozen=True)
class Dynamic:
    """Temporary memory of an update, for a micro-batch of `rows` rows; all of it grows with the rows."""

    rows: int
    kept: int  # bytes that the graph keeps between forward and backward pass
    peak: int  # bytes at the worst moment

    def at(self, rows: int) -> Dynamic:
        """Returns the same for another micro-batch."""
        return Dynamic(rows, *(math.ceil(value * rows / self.rows) for value in (self.kept, self.peak)))


@dataclass(frozen=True)
class Memory:
    """Bytes of one process while it trains."""

    fixed: Mapping[str, int]  # part -> bytes that are there all the time
    kept: int  # activations that the graph keeps between forward and backward pass
    working: int  # on top of them at the worst moment

    @staticmethod
    def of(fixed: Mapping[str, int], update: Dynamic, scoring: int) -> Memory:
        """Returns the memory of updates and, at other moments, of rewards that take `scoring` bytes."""
        return Memory(fixed, update.kept, max(update.peak, scoring) - update.kept)

    @property
    def total(self) -> int:
        """Bytes of all tensors at the worst moment."""
        return sum(self.fixed.values()) + self.kept + self.working


def size(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def module_size(module: nn.Module) -> int:
    """Returns the bytes of a network's parameters and buffers."""
    return size([*module.parameters(), *module.buffers()])


def sharded_size(transformer: nn.Module, processes: int) -> int:
    """Returns the bytes that a process holds of a base that FSDP2 splits over all of them.

    Each holds its share of the blocks, two whole blocks (the one at work and the next), and all that is
    outside of the blocks: that is put together for the whole of a forward pass.
    """
    blocks = [
        block for child in transformer.children() if isinstance(child, nn.ModuleList) for block in child
    ]
    sizes = [module_size(block) for block in blocks]
    whole = module_size(transformer)
    return min(whole, whole - sum(sizes) + math.ceil(sum(sizes) / processes) + 2 * max(sizes))


def optimizer_size(parameters: Iterable[Tensor], settings: OptimizerSettings) -> int:
    """Returns the bytes of AdamW's two moments; in 8 bits each block has a scale of its own."""
    total = 0
    for parameter in parameters:
        numbers = parameter.numel()
        if settings.state_bits == 8 and numbers >= SMALLEST_8BIT:
            total += 2 * (numbers + FLOAT32 * math.ceil(numbers / BLOCK_8BIT))
        else:
            total += 2 * numbers * FLOAT32
    return total


def needed(total: int) -> float:
    """Returns the GiB that a card must have for `total` bytes of tensors."""
    return total / GIB + RESERVE


def largest_micro_batch(fixed: int, dynamic: Dynamic, capacity: float, limit: int, *, aside: int = 0) -> int:
    """Returns the most rows of a micro-batch that fit a card, at most `limit`; 0 if not even one does.

    Args:
        fixed: bytes that are there all the time.
        dynamic: of some micro-batch.
        capacity: GiB of the card.
        limit: rows that there are.
        aside: temporary bytes at another time, independent of the micro-batch.
    """
    room = (capacity - RESERVE) * GIB - fixed
    if aside > room:
        return 0
    return max(0, min(limit, math.floor(room * dynamic.rows / dynamic.peak)))
