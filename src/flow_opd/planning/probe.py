"""One micro-batch of a training, run without data: its FLOPs by role, and its memory over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_opd.planning.memory import Dynamic
from flow_opd.planning.meter import Meter, Span
from flow_opd.planning.shapes import DECODE, ShapeModel
from flow_opd.protocols import BatchSource, Objective, VelocityField
from flow_opd.types import Conditioning, Prompt

# Parts of a reading. A rollout is the student without gradients.
STUDENT, ROLLOUT, TEACHER, ANCHOR, REFERENCE = "student", "rollout", "teacher", "anchor", "reference"
BACKWARD = "backward"


class MeteredField:
    """A velocity field whose calls a meter keeps apart under a role; without gradients under another."""

    def __init__(self, field: VelocityField, meter: Meter, role: str, *, without_gradients: str = "") -> None:
        """Names the roles.

        Args:
            field: whose calls are read.
            meter: reads them.
            role: of the calls.
            without_gradients: role of calls that build no graph; empty: the same role.
        """
        self.field = field
        self.meter = meter
        self.role = role
        self.without_gradients = without_gradients or role

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the field's velocity, [M, C, H, W]."""
        role = self.role if torch.is_grad_enabled() else self.without_gradients
        with self.meter.span(role, rows=len(latents)):
            return self.field.velocity(latents, sigma, conditioning)


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


@dataclass(frozen=True)
class Readings:
    """A micro-batch with and without gradient checkpointing, and what does not depend on it."""

    plain: Reading
    checkpointed: Reading
    decode: Span  # of the images of a micro-batch
    teacher: float  # FLOPs of a teacher's velocity for one row, a mean over tasks

    def of(self, checkpointing: bool) -> Reading:
        """Returns the reading with or without gradient checkpointing."""
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
            anchor=plain(ANCHOR),
            reference=plain(REFERENCE),
            decode=self.decode.flops / self.decode.rows,
        )


def read_update(meter: Meter, source: BatchSource, objective: Objective) -> Reading:
    """Returns the reading of a source's first micro-batch, from its rollouts to its gradients."""
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
    """Returns the reading of the decoding of `rows` images."""
    model.meter.reset()
    with model.meter:
        model.backbone.decode_latents(torch.zeros(rows, *model.backbone.latent_shape))
    return model.meter.spans[DECODE]
