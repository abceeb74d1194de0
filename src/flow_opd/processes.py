"""The processes that share a run, one to a device: each takes its share of the rows, and sums are joined."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from flow_opd.errors import ProcessError


@dataclass(frozen=True)
class Processes:
    """Who this process is among those that share a run; alone by default.

    Every process holds the same trained weights and takes the same steps: what is summed here comes out
    with the same bits everywhere.
    """

    index: int = 0
    count: int = 1
    device: str = "cpu"  # where the collective operations work

    @property
    def is_main(self) -> bool:
        """Says whether this process writes files and draws bars."""
        return self.index == 0

    def rows(self, total: int) -> range:
        """Returns this process's share of rows 0 .. total - 1: every count-th, from its own index on."""
        return range(self.index, total, self.count)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, which hold tensors of the same shapes.

        Raises:
            ProcessError: if another process has gone.
        """
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().flatten().to(self.device) for tensor in tensors])
        with _others_there():  # on a card the sum is only begun here, and fails where it is read
            dist.all_reduce(flat)
            for tensor, part in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather_rows(self, own: Tensor, total: int) -> Tensor:
        """Returns the values of all rows, [total, ...], from those of this process's `rows(total)`.

        Raises:
            ProcessError: if another process has gone.
        """
        if self.count == 1:
            return own
        everything = own.new_zeros(total, *own.shape[1:])
        everything[list(self.rows(total))] = own
        self.add_up([everything])
        return everything

    def decided(self, choice: bool) -> bool:
        """Returns what the main process chose.

        Raises:
            ProcessError: if another process has gone.
        """
        flag = torch.tensor([float(choice and self.is_main)])
        self.add_up([flag])
        return bool(flag)

    def wait(self) -> None:
        """Returns when all processes have come here.

        Raises:
            ProcessError: if another process has gone.
        """
        self.add_up([torch.zeros(1)])


ALONE = Processes()


def is_first_launched() -> bool:
    """Says whether this is the first of the processes that a launcher has started, or the only one.

    It is known before the processes have joined.
    """
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _others_there() -> Iterator[None]:
    """Turns a broken connection into a message: a process that died leaves the others nothing to add to."""
    try:
        yield
    except RuntimeError as broken:
        raise ProcessError(
            f"another process of this run has stopped, or cannot be reached ({str(broken)[:200]})",
            value=f"process {dist.get_rank()} of {dist.get_world_size()}",
            allowed="a run whose processes all live",
            fix="see what the other process said; the same command goes on from the newest checkpoint, "
            "on this or another number of processes",
        ) from broken
