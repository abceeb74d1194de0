"""The adapters of a planned training: one LoRA for each rank, alpha and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace

from torch import nn

from flow_opd.adapters.bank import AdapterBank
from flow_opd.config.common import LoraSettings


class SharedAdapters:
    """Adapters of equal rank, alpha and targets share one LoRA: their shapes are equal, and it saves time."""

    def __init__(self, transformer: nn.Module, loras: Mapping[str, LoraSettings], *, student: str) -> None:
        """Attaches a LoRA for the student and one for each other combination of rank, alpha and targets.

        Args:
            transformer: the bare network, on the meta device.
            loras: name -> rank, alpha and targets.
            student: the one that is trained; it has a LoRA of its own.

        Raises:
            AdapterError: if a target names nothing in this network.
        """
        holder = SimpleNamespace(transformer=transformer)
        self.bank = AdapterBank(holder)
        self._representative: dict[str, str] = {}
        for name, lora in sorted(loras.items(), key=lambda item: item[0] != student):
            alike = [old for old, other in loras.items() if old in self.bank.names and other == lora]
            shared = next((old for old in alike if old != student), None) if name != student else None
            if shared is None:
                self.bank.add(name, lora, seed=0)
            self._representative[name] = shared or name
        self.bank.train(student)
        self.transformer: nn.Module = holder.transformer

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, those that share one LoRA included."""
        return tuple(self._representative)

    def using(self, name: str | None) -> AbstractContextManager[None]:
        """Activates the adapter `name` (None = the bare base) inside the context."""
        return self.bank.using(None if name is None else self._representative[name])

    def using_rows(self, parts: Sequence[tuple[str | None, int]]) -> AbstractContextManager[None]:
        """Activates an adapter for each part of the rows, (adapter, number of rows)."""
        return self.bank.using_rows(
            [(None if name is None else self._representative[name], rows) for name, rows in parts]
        )

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Returns the parameters that the adapter `name` has, though it may share them here."""
        return self.bank.parameters(self._representative[name])
