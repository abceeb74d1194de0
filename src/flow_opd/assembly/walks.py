"""How the student of a run walks."""

from __future__ import annotations

from flow_opd.config.common import SamplingSettings
from flow_opd.config.state_weights import CustomStateWeights, StateWeightsSpec
from flow_opd.flow.dynamics import DYNAMICS
from flow_opd.flow.schedule import make_schedule
from flow_opd.flow.weights import STATE_WEIGHTS, StateWeights, given_weights, noisy_weights, scaled
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
    weights: StateWeightsSpec,
    seed: int,
    micro_batch_size: int,
    processes: Processes,
) -> Walks:
    """Returns how the student walks in training; trajectory i of round r has its own noise."""

    return Walks(
        prompts_of_round=groups.round,
        encoder=encoder,
        seeder=lambda index, row: generator(seed, "walk", index, row),
        rank_seeder=lambda index, step: generator(seed, "ranks", index, step),
        schedule=make_schedule(
            backbone.sigmas(sampling.num_steps),
            noise_level=sampling.noise_level,
            stochastic_steps=sampling.stochastic_range(),
        ),
        dynamics=DYNAMICS.get(sampling.dynamics),
        micro_batch_size=micro_batch_size,
        state_weights=scaled(_state_weights(weights, sampling.noise_level)),
        processes=processes,
    )


def _state_weights(spec: StateWeightsSpec, noise_level: float) -> StateWeights:
    if isinstance(spec, CustomStateWeights):
        return given_weights(spec.values)
    return noisy_weights(noise_level) if spec.name == "sde" else STATE_WEIGHTS.get(spec.name)
