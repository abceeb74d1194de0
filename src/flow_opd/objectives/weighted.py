"""A weighted sum of terms that share one student forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flow_opd.policies.alike import velocity_of_alike
from flow_opd.protocols import Term, VelocityField
from flow_opd.types import ImageBatch, LossOutput, TransitionBatch


class WeightedTerms:
    """L = sum_i weight_i term_i(v_student, batch): OPD + lambda MAR, PPO + beta KL, or a single term."""

    def __init__(self, student: VelocityField, terms: Sequence[tuple[float, Term]]) -> None:
        """Joins the student with the terms, [(weight, term)]."""
        self.student = student
        self.terms = list(terms)

    def __call__(self, batch: TransitionBatch | ImageBatch) -> LossOutput:
        """Returns the loss summed over the rows; the student runs once, or not at all if it already has.

        Metrics are sums over rows under the terms' own names, unweighted.
        """
        velocity = batch.velocity
        if velocity is None:
            alike = batch.alike if isinstance(batch, TransitionBatch) else None
            velocity = velocity_of_alike(self.student, batch.latents, batch.sigma, batch.conditioning, alike)
        total = torch.zeros((), device=velocity.device)
        metrics: dict[str, Tensor] = {}
        for weight, term in self.terms:
            output = term(velocity, batch)
            assert output.count == len(batch), f"{term.name} counted {output.count} of {len(batch)} rows"
            total = total + weight * output.total
            metrics.update(output.metrics)
        return LossOutput(total, len(batch), {"loss": total.detach(), **metrics})
