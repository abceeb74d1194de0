"""One micro-batch of a training, run without data: its FLOPs by role, and its memory over time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flow_opd.planning.memory import Dynamic
from flow_opd.planning.meter import Span
from flow_opd.planning.scoring import Scoring
from flow_opd.planning.shapes import DECODE, ShapeModel
from flow_opd.protocols import BatchSource, Objective, VelocityField
from flow_opd.types import Conditioning, Prompt

# Parts of a measurement. A rollout is the student without gradients.
STUDENT, ROLLOUT, REFERENCE = "student", "rollout", "reference"
BACKWARD = "backward"


class MeteredField:
    """A velocity field whose calls are kept apart under a role; those without gradients under another.

    Policies of one kind (rank and targets of the adapter, with or without guidance) cost the same. What one
    of them took without gradients is added for the next without running it: that saves a third of the time.
    """

    def __init__(
        self,
        field: VelocityField,
        model: ShapeModel,
        role: str,
        *,
        kind: Hashable,
        without_gradients: str = "",
    ) -> None:
        """Names the roles.

        Args:
            field: whose calls are read.
            model: its meter reads them, and it keeps what is known of each kind.
            role: of the calls.
            kind: all that decides the cost of a row.
            without_gradients: role of calls that build no graph; empty: the same role.
        """
        self.field = field
        self.model = model
        self.role = role
        self.kind = kind
        self.without_gradients = without_gradients or role

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the field's velocity, [M, C, H, W]; of the right shape only, where its cost is known."""
        meter, rows = self.model.meter, len(latents)
        if torch.is_grad_enabled():
            with meter.span(self.role, rows=rows):
                return self.field.velocity(latents, sigma, conditioning)
        key, live = (self.kind, rows), meter.live
        if key in self.model.known:
            meter.add(self.without_gradients, self.model.known[key])
            return torch.zeros_like(latents, dtype=torch.float32)
        with meter.span(self.without_gradients, rows=rows) as this:
            velocity = self.field.velocity(latents, sigma, conditioning)
        self.model.known[key] = replace(this, peak=this.peak - live)
        return velocity


@dataclass(frozen=True)
class Reading:
    """What a micro-batch takes."""

    spans: Mapping[str, Span]  # part -> FLOPs and peak
    dynamic: Dynamic  # bytes, weights and gradients excluded

    def flops_per_row(self, part: str) -> float:
        """Returns the FLOPs of a part for one row; 0 if it did not occur."""
        span = self.spans.get(part)
        return span.flops / span.rows if span else 0.0


@dataclass(frozen=True)
class Costs:
    """FLOPs of one row; guidance, where a policy has it, counts as the two forward passes that it is."""

    forward: float  # of the student
    backward: float
    recompute: float  # what gradient checkpointing adds to the backward pass
    teacher: float  # a mean over tasks
    anchor: float
    reference: float
    decode: float  # of one image
    scoring: float  # of one image, all rewards together


@dataclass(frozen=True)
class Measurements:
    """A micro-batch with and without gradient checkpointing, and what does not depend on it."""

    plain: Reading
    checkpointed: Reading
    decode: Span  # of the images of a micro-batch
    teacher: float  # FLOPs of a teacher's velocity for one row, a mean over tasks
    anchor: float  # FLOPs of the anchor's velocity for one row
    scoring: Scoring  # of the images of a micro-batch

    def of(self, checkpointing: bool) -> Reading:
        """Returns the measurement with or without gradient checkpointing."""
        return self.checkpointed if checkpointing else self.plain

    @property
    def costs(self) -> Costs:
        """What a row costs."""
        plain, backward = self.plain.flops_per_row, self.plain.flops_per_row(BACKWARD)
        return Costs(
            forward=plain(STUDENT),
            backward=backward,
            recompute=self.checkpointed.flops_per_row(BACKWARD) - backward,
            teacher=self.teacher,
            anchor=self.anchor,
            reference=plain(REFERENCE),
            decode=self.decode.flops / self.decode.rows,
            scoring=self.scoring.flops,
        )


def read_update(model: ShapeModel, source: BatchSource, objective: Objective) -> Reading:
    """Returns the measurement of a source's first micro-batch, from its rollouts to its gradients."""
    meter = model.meter
    meter.reset()
    with meter:
        batch = next(iter(next(source.round(0))))
        output = objective(batch)
        kept = meter.live
        with meter.span(BACKWARD, rows=len(batch)):
            output.total.backward()  # type: ignore[no-untyped-call]
    return Reading(dict(meter.spans), Dynamic(len(batch), kept, meter.peak))


def read_velocity(model: ShapeModel, field: VelocityField, task: str) -> float:
    """Returns the FLOPs of a field's velocity for one row of a task, without gradients."""
    conditioning = model.backbone.encode_prompts([Prompt("", task)])
    model.meter.reset()
    with model.meter, torch.no_grad():
        field.velocity(torch.zeros(1, *model.backbone.latent_shape), torch.ones(1), conditioning)
    return float(model.meter.flops)


def read_decode(model: ShapeModel, rows: int) -> Span:
    """Returns the measurement of the decoding of `rows` images."""
    model.meter.reset()
    with model.meter:
        model.backbone.decode_latents(torch.zeros(rows, *model.backbone.latent_shape))
    return model.meter.spans[DECODE]
