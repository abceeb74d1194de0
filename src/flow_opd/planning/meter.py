"""Counts FLOPs and live bytes of whatever runs inside it, on fake tensors as on real ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_ATEN = torch.ops.aten
_READ_NUMBER = _ATEN._local_scalar_dense.default
Shape = Sequence[int]


def attention_flops(
    query: Shape, key: Shape, value: Shape, *_: Any, attn_mask: Any = None, scale: Any = None, out_shape: Any
) -> int:
    """Returns the FLOPs of attention: two products of 2 B heads L L width each."""
    return int(sdpa_flop_count(query, key, value))


def attention_backward_flops(
    gradient: Shape,
    query: Shape,
    key: Shape,
    value: Shape,
    *_: Any,
    attn_mask: Any = None,
    scale: Any = None,
    out_shape: Any,
) -> int:
    """Returns the FLOPs of attention's gradient: five such products, as the scores are computed again."""
    return int(sdpa_backward_flop_count(gradient, query, key, value))


CPU_ATTENTION: Mapping[Any, Any] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}
"""The attention that PyTorch picks on a CPU, which its own table of formulas lacks; for FlopCounterMode's
`custom_mapping`."""


@dataclass
class Span:
    """What was counted in one part of the work."""

    flops: int = 0
    rows: int = 0
    peak: int = 0  # bytes alive at the worst moment of the part, above what was there before it


class Meter(TorchDispatchMode):
    """Counts FLOPs by PyTorch's own formulas, and the bytes of every tensor until it is freed.

    FlopCounterMode has the same formulas, but keeps alive what gradient checkpointing computes again, so
    that nothing can be said about memory in the same pass.

    Fake tensors hold no numbers. Where the code reads one (a metric, a check for NaN) it gets 1.
    """

    def __init__(self, present: Iterable[Tensor] = ()) -> None:
        """Begins at zero.

        Args:
            present: weights and gradients; whatever shares their memory is not counted.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._present = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in present}
        self.reset()

    def reset(self) -> None:
        """Forgets all that was counted; what is alive now is not counted when it goes."""
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.flops = 0
        self.live = 0  # bytes
        self.peak = 0  # bytes
        self.spans: dict[str, Span] = {}

    @contextmanager
    def span(self, name: str, *, rows: int) -> Iterator[Span]:
        """Adds what is counted inside to the span `name`, and yields what is counted this time."""
        before, outer = self.flops, self.peak
        self.peak = self.live
        this = Span(rows=rows)
        try:
            yield this
        finally:
            this.flops, this.peak = self.flops - before, self.peak
            self.peak = max(self.peak, outer)
            self._enter(name, this)

    def add(self, name: str, known: Span) -> None:
        """Adds to the span `name` what is known without running it; `known.peak` is above what is alive."""
        self.flops += known.flops
        self.peak = max(self.peak, self.live + known.peak)
        self._enter(name, replace(known, peak=self.live + known.peak))

    def _enter(self, name: str, this: Span) -> None:
        part = self.spans.setdefault(name, Span())
        part.flops += this.flops
        part.rows += this.rows
        part.peak = max(part.peak, this.peak)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts it."""
        if func is _READ_NUMBER and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()
        result = func(*args, **(kwargs or {}))
        self.flops += _flops(func._overloadpacket, args, kwargs or {}, result)
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._alive or key in self._present:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.ref(storage, partial(self._gone, key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int, reference: weakref.ref[torch.UntypedStorage]) -> None:
        if self._alive.get(key) is reference:
            del self._alive[key]
            self.live -= size


def _flops(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    if packet in CPU_ATTENTION:
        shapes = [arg.shape if isinstance(arg, Tensor) else None for arg in args]
        return int(CPU_ATTENTION[packet](*shapes, out_shape=None))
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    return 0
