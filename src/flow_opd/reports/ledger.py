"""What a model has cost to train, its teachers included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_opd.reports.numbers import duration, percent


@dataclass(frozen=True)
class Cost:
    """Wall time and optimizer steps of a training; None where nobody has written it down."""

    name: str
    seconds: float | None = None
    steps: int | None = None
    processes: int = 1  # one to a device

    @property
    def time(self) -> str:
        """The wall time in words."""
        if self.seconds is None:
            return "unknown"
        return duration(self.seconds) + (f" on {self.processes} devices" if self.processes > 1 else "")

    @property
    def device_seconds(self) -> float:
        """Wall time times devices, 0 where it is unknown."""
        return (self.seconds or 0.0) * self.processes


def ledger(own: Cost, teachers: Sequence[Cost], cold_start: Cost | None = None) -> tuple[list[Cost], str]:
    """Returns the lines of the ledger, and a sentence with the sum and the teachers' share of it."""
    lines = [own, *([] if cold_start is None else [cold_start]), *teachers]
    if lines == [own]:
        return lines, f"The training took {own.time}."
    unknown = [cost.name for cost in lines if cost.seconds is None]
    if unknown:
        return lines, (
            f"The cost of {', '.join(unknown)} is unknown here, and so are the sum and the teachers' share."
        )
    spent = sum(cost.device_seconds for cost in teachers)
    total = sum(cost.device_seconds for cost in lines)
    share = percent(spent / total) if total > 0 else "–"
    return lines, (
        f"Together {duration(total)} of a device, of which the teachers took {share}. The base's training is "
        "not counted."
    )
