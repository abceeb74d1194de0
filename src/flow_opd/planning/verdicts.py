"""Does a training fit a card, how long does it take there, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flow_opd.planning.machines import Machine
from flow_opd.planning.memory import Dynamic, largest_micro_batch, needed


@dataclass(frozen=True)
class Saving:
    """A setting that makes less stay in memory."""

    change: str  # what to do
    bytes: int
    at_least: bool = False  # it may save more, so that what is needed then is an upper bound


@dataclass(frozen=True)
class Options:
    """What a process needs, and what a user may change about it without changing the results."""

    fixed: int  # bytes that are there all the time
    dynamic: Mapping[bool, Dynamic]  # with checkpointing? -> temporary memory, at this micro-batch
    checkpointing: bool  # as configured
    rows: int  # of a process: the largest micro-batch that makes sense
    encoding: int  # bytes while prompts are encoded
    scoring: int = 0  # temporary bytes while rewards are computed, outside of the update
    savings: tuple[Saving, ...] = ()  # what else can be changed, the cheapest first
    t5_may_go: bool = False  # whether the base can do without its largest text encoder

    def need(self, *, checkpointing: bool, micro_batch: int, saved: Sequence[Saving] = ()) -> float:
        """Returns the GiB that a card must have."""
        comes_and_goes = max(self.dynamic[checkpointing].at(micro_batch).peak, self.scoring)
        return needed(self._fixed(saved) + comes_and_goes)

    def largest(self, capacity: float, *, checkpointing: bool, saved: Sequence[Saving] = ()) -> int:
        """Returns the most rows of a micro-batch that fit `capacity` GiB."""
        fixed, dynamic = self._fixed(saved), self.dynamic[checkpointing]
        return largest_micro_batch(fixed, dynamic, capacity, self.rows, aside=self.scoring)

    def _fixed(self, saved: Sequence[Saving]) -> int:
        return self.fixed - sum(saving.bytes for saving in saved)


@dataclass(frozen=True)
class Verdict:
    """One training on one card."""

    card: str
    memory_gib: float
    bf16_tflops: float
    needs_gib: float  # as configured
    fits: bool
    gpu_hours: float
    naive_gpu_hours: float
    largest_micro_batch: int  # without gradient checkpointing; 0 = not even one row fits
    largest_micro_batch_with_checkpointing: int
    advice: str  # empty if it fits


def judge(machine: Machine, options: Options, *, hours: float, naive_hours: float) -> Verdict:
    """Returns the verdict on a card for a run of so many hours of it, by our and by the naive schedule."""
    micro_batch = options.dynamic[options.checkpointing].rows
    needs = options.need(checkpointing=options.checkpointing, micro_batch=micro_batch)
    encodes = needed(options.encoding) <= machine.memory
    return Verdict(
        card=machine.name,
        memory_gib=machine.memory,
        bf16_tflops=machine.tflops,
        needs_gib=needs,
        fits=needs <= machine.memory and encodes,
        gpu_hours=hours,
        naive_gpu_hours=naive_hours,
        largest_micro_batch=options.largest(machine.memory, checkpointing=False),
        largest_micro_batch_with_checkpointing=options.largest(machine.memory, checkpointing=True),
        advice=_advice(machine, options, needs, micro_batch, encodes=encodes),
    )


def _advice(machine: Machine, options: Options, needs: float, micro_batch: int, *, encodes: bool) -> str:
    """Returns what is too large, and which changes make it fit, each with what it then needs."""
    lines = []
    if not encodes:
        lines.append(
            f"encoding the prompts needs {needed(options.encoding):.1f} GiB, with base, VAE and text "
            f"encoders together: {'set base.t5 to false, or ' if options.t5_may_go else ''}encode them on a "
            "larger card and take the embeddings along"
        )
    if needs > machine.memory:
        tries = (
            _ways(machine, options, micro_batch, options.savings[:count])
            for count in range(len(options.savings) + 1)
        )
        remedy = next((", or ".join(ways) for ways in tries if ways), "no setting helps, take a larger card")
        lines.append(f"does not fit in {machine.memory:.1f} GiB (needs {needs:.1f}): {remedy}")
    return "; ".join(lines)


def _ways(machine: Machine, options: Options, micro_batch: int, saved: Sequence[Saving]) -> list[str]:
    """Returns what can be changed beside `saved` so that it fits; both only where one is too little."""
    few: list[str] = []
    many: list[str] = []
    for on in sorted({options.checkpointing, True}):
        rows = min(micro_batch, options.largest(machine.memory, checkpointing=on, saved=saved))
        if not rows:
            continue
        changes = [saving.change for saving in saved]
        if on != options.checkpointing:
            changes.append("turn on compute.gradient_checkpointing")
        if rows < micro_batch:
            changes.append(f"lower micro_batch_size to {rows}")
        least = options.need(checkpointing=on, micro_batch=rows, saved=saved)
        bound = "at most " if any(saving.at_least for saving in saved) else ""
        way = f"{' and '.join(changes)} ({bound}{least:.1f} GiB)"
        if len(changes) == len(saved):
            return [way]
        (few if len(changes) == len(saved) + 1 else many).append(way)
    return few or many
