"""On-policy walks as training batches: the source of multi-teacher distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import Backbone, Dynamics, PromptEncoder, VelocityField
from flow_opd.rollout.sampler import micro_rows
from flow_opd.rollout.walk import on_policy_walk
from flow_opd.types import Prompt, Schedule, TransitionBatch

PromptsOfRound = Callable[[int], Sequence[Prompt]]
Seeder = Callable[..., torch.Generator]


@dataclass(frozen=True)
class Walks:
    """How a policy walks in training: for which prompts, from which noise, along which steps."""

    prompts_of_round: PromptsOfRound
    encoder: PromptEncoder
    seeder: Seeder  # (round, trajectory) -> generator of that trajectory's noise
    schedule: Schedule
    dynamics: Dynamics
    micro_batch_size: int  # trajectories or transitions of one forward pass
    processes: Processes = ALONE  # who shares the trajectories of a round


class WalkBatches:
    """One update per round: every state that the student visits for the prompts of the round.

    Nothing is decoded and no reward runs; a walk of B prompts and T steps costs B T student forwards
    and backwards, whatever the number of teachers.
    """

    def __init__(self, student: VelocityField, backbone: Backbone, walks: Walks) -> None:
        """Takes the policy that is trained, the base, and how to walk."""
        self.student = student
        self.backbone = backbone
        self.walks = walks

    @property
    def readings(self) -> Mapping[str, float]:
        """Nothing beyond the objective's own metrics."""
        return {}

    def round(self, index: int) -> Iterator[Iterator[TransitionBatch]]:
        """Yields the one update of round `index`."""
        yield self._walks(index)

    def _walks(self, index: int) -> Iterator[TransitionBatch]:
        prompts = self.walks.prompts_of_round(index)
        # By task, so that a micro-batch asks few teachers; every row has its own noise wherever it walks.
        own = sorted(self.walks.processes.rows(len(prompts)), key=lambda row: prompts[row].task)
        with torch.no_grad():
            conditioning = self.walks.encoder.encode_prompts([prompts[row] for row in own])
        for part in micro_rows(len(own), self.walks.micro_batch_size):
            yield from on_policy_walk(
                self.student,
                conditioning.rows(list(part)),
                latent_shape=self.backbone.latent_shape,
                schedule=self.walks.schedule,
                dynamics=self.walks.dynamics,
                generators=[self.walks.seeder(index, own[place]) for place in part],
            )
