"""FLOPs of one optimizer update by part: what a row costs, times the rows; and the hours that they take."""

from __future__ import annotations

from collections.abc import Mapping

from flow_opd.planning.job import Work
from flow_opd.planning.machines import Machine
from flow_opd.planning.probe import Costs

DECODE, REWARDS = "decode", "rewards"


def update_flops(work: Work, costs: Costs, *, checkpointing: bool) -> dict[str, float]:
    """Returns part -> FLOPs of one update; parts that do not occur are 0."""
    return {
        "rollout": work.rollout * costs.forward,
        "student_forward": work.student * costs.forward,
        "student_backward": work.student * costs.backward,
        "recompute": work.student * costs.recompute if checkpointing else 0.0,
        "teacher": work.teacher * costs.teacher,
        "anchor": work.anchor * costs.anchor,
        "reference": work.reference * costs.reference,
        DECODE: work.decode * costs.decode,
        REWARDS: work.scored * costs.scoring,
    }


def gpu_hours(
    flops: Mapping[str, float], machine: Machine, utilisation: float, *, cpu_seconds: float = 0.0
) -> float:
    """Returns the hours of one card.

    Args:
        flops: part -> operations. The VAE computes in float32, whose convolutions PyTorch gives to the tensor
            cores (TF32); rewards compute in float32, whose matrix products it does not; the rest is taken to
            be in half precision.
        machine: the card.
        utilisation: share of its peak rates that is reached.
        cpu_seconds: while the card waits for a processor.
    """
    rates = {DECODE: machine.tf32_tflops, REWARDS: machine.float32_tflops}
    seconds = sum(amount / (rates.get(part, machine.tflops) * 1e12) for part, amount in flops.items())
    return (seconds / utilisation + cpu_seconds) / 3600
