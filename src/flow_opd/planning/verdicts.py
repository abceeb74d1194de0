"""Does a training fit a card, how long does it take there, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flow_opd.planning.machines import Machine, gpu_hours
from flow_opd.planning.memory import Dynamic, largest_micro_batch, needed


@dataclass(frozen=True)
class Options:
    """What a process needs, and what a user may change about it without changing the results."""

    fixed: int  # bytes that are there all the time
    dynamic: Mapping[bool, Dynamic]  # with checkpointing? -> what comes and goes, at this micro-batch
    checkpointing: bool  # as configured
    rows: int  # of a process: the largest micro-batch that makes sense
    encoding: int  # bytes while prompts are encoded
    halved: int  # bytes that base.dtype bfloat16 would save of `fixed`; 0 if it is set

    def need(self, *, checkpointing: bool, micro_batch: int, halved: bool = False) -> float:
        """Returns the GiB that a card must have; an upper bound for `halved`, as activations shrink too."""
        peak = self.dynamic[checkpointing].at(micro_batch).peak
        return needed(self.fixed - (self.halved if halved else 0) + peak)

    def largest(self, capacity: float, *, checkpointing: bool, halved: bool = False) -> int:
        """Returns the most rows of a micro-batch that fit `capacity` GiB."""
        fixed = self.fixed - (self.halved if halved else 0)
        return largest_micro_batch(fixed, self.dynamic[checkpointing], capacity, self.rows)


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


def judge(machine: Machine, options: Options, *, run: float, naive_run: float, utilisation: float) -> Verdict:
    """Returns the verdict on a card for a run of `run` FLOPs (`naive_run` by the naive schedule)."""
    micro_batch = options.dynamic[options.checkpointing].rows
    needs = options.need(checkpointing=options.checkpointing, micro_batch=micro_batch)
    encodes = needed(options.encoding) <= machine.memory
    return Verdict(
        card=machine.name,
        memory_gib=machine.memory,
        bf16_tflops=machine.tflops,
        needs_gib=needs,
        fits=needs <= machine.memory and encodes,
        gpu_hours=gpu_hours(run, machine, utilisation),
        naive_gpu_hours=gpu_hours(naive_run, machine, utilisation),
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
            "encoders together: set base.t5 to false, or encode them on a larger card"
        )
    if needs > machine.memory:
        ways = _ways(machine, options, micro_batch, halved=False)
        if not ways and options.halved:
            ways = _ways(machine, options, micro_batch, halved=True)
        remedy = ", or ".join(ways) or "no setting helps, take a larger card"
        lines.append(f"does not fit in {machine.memory:.1f} GiB (needs {needs:.1f}): {remedy}")
    return "; ".join(lines)


def _ways(machine: Machine, options: Options, micro_batch: int, *, halved: bool) -> list[str]:
    """Returns what can be changed so that it fits; two changes at once only where one is too little."""
    few: list[str] = []
    many: list[str] = []
    for on in sorted({options.checkpointing, True}):
        rows = min(micro_batch, options.largest(machine.memory, checkpointing=on, halved=halved))
        if not rows:
            continue
        changes = ["set base.dtype to bfloat16"] if halved else []
        if on != options.checkpointing:
            changes.append("turn on compute.gradient_checkpointing")
        if rows < micro_batch:
            changes.append(f"lower micro_batch_size to {rows}")
        least = options.need(checkpointing=on, micro_batch=rows, halved=halved)
        way = f"{' and '.join(changes)} ({'at most ' if halved else ''}{least:.1f} GiB)"
        (few if len(changes) - halved < 2 else many).append(way)
    return few or many
