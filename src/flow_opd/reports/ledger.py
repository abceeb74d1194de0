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

    @property
    def time(self) -> str:
        """The wall time in words."""
        return "unknown" if self.seconds is None else duration(self.seconds)


def ledger(own: Cost, teachers: Sequence[Cost]) -> tuple[list[Cost], str]:
    """Returns the lines of the ledger, and a sentence with the sum and the teachers' share of it."""
    if not teachers:
        return [own], f"The training took {own.time}."
    unknown = [cost.name for cost in (own, *teachers) if cost.seconds is None]
    if unknown:
        return [own, *teachers], (
            f"The cost of {', '.join(unknown)} is unknown here, and so are the sum and the teachers' share."
        )
    spent = sum(cost.seconds or 0.0 for cost in teachers)
    total = spent + (own.seconds or 0.0)
    share = percent(spent / total) if total > 0 else "–"
    return [own, *teachers], (
        f"Together {duration(total)}, of which the teachers took {share}. The base's training is not counted."
    )
