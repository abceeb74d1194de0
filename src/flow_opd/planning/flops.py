"""FLOPs of one optimizer update by part: what a row costs, times the rows."""

from __future__ import annotations

from flow_opd.planning.job import Work
from flow_opd.planning.probe import Costs


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
        "decode": work.decode * costs.decode,
    }
