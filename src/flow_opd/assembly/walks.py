"""How the student of a run walks."""

from __future__ import annotations

import torch

from flow_opd.config.common import SamplingSettings
from flow_opd.flow.dynamics import DYNAMICS
from flow_opd.flow.schedule import make_schedule
from flow_opd.processes import Processes
from flow_opd.prompts.rounds import PromptRounds
from flow_opd.protocols import Backbone, PromptEncoder
from flow_opd.rollout.walk_batches import Walks
from flow_opd.training.seeding import generator


def build_walks(
    backbone: Backbone,
    encoder: PromptEncoder,
    groups: PromptRounds,
    sampling: SamplingSettings,
    *,
    seed: int,
    micro_batch_size: int,
    processes: Processes,
) -> Walks:
    """Returns how the student walks in training; trajectory i of round r has its own noise."""

    def seeder(index: int, row: int) -> torch.Generator:
        return generator(seed, "walk", index, row)

    return Walks(
        prompts_of_round=groups.round,
        encoder=encoder,
        seeder=seeder,
        schedule=make_schedule(
            backbone.sigmas(sampling.num_steps),
            noise_level=sampling.noise_level,
            stochastic_steps=sampling.stochastic_range(),
        ),
        dynamics=DYNAMICS.get(sampling.dynamics),
        micro_batch_size=micro_batch_size,
        processes=processes,
    )
