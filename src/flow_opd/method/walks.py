"""How the student's trajectories of a run are sampled."""

from __future__ import annotations

from torch import Tensor

from flow_opd.config.sampling import SamplingSettings
from flow_opd.config.state_weights import StateWeightsSettings
from flow_opd.errors import ConfigError
from flow_opd.flow.path import make_schedule
from flow_opd.flow.weights import scaled
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.walk import Walks
from flow_opd.processes import Processes
from flow_opd.protocols import Backbone, PromptEncoder
from flow_opd.seeding import generator

TINY_LEVEL = 0.05


def refuse_tiny_levels(sigmas: Tensor, sampling: SamplingSettings) -> None:
    """Passes if no step of CPS adds noise on its way to a tiny noise level.

    The std of CPS is in proportion to the next level, so a step to a tiny one has nearly all of the
    transition KL: of SD3's 10 steps the one from .278 to .009 has 99.85 %. It would be the only one that is
    trained, or, under other state weights, would set their size. The SDE's std does not shrink so.

    Args:
        sigmas: the grid, [T + 1], descending, from 1 to 0.
        sampling: how trajectories are drawn.

    Raises:
        ConfigError: if a step does.
    """
    if not sampling.dynamics.takes_noise_away:
        return
    first, stop = sampling.stochastic_range()
    tiny = [step for step in range(first, stop) if 0 < sigmas[step + 1] < TINY_LEVEL]
    if tiny:
        fix = "move the window to earlier steps, or use dynamics 'sde'"
        if tiny[0] > first:
            fix = f"set sampling.stochastic_steps to [{first}, {tiny[0] - 1}], or use dynamics 'sde'"
        raise ConfigError(
            f"step {tiny[0]} of CPS adds noise on its way to a tiny level and has nearly all of the KL",
            value=round(float(sigmas[tiny[0] + 1]), 4),
            allowed=f"noise in steps that end at {TINY_LEVEL} or above",
            fix=fix,
        )


def build_walks(
    backbone: Backbone,
    encoder: PromptEncoder,
    groups: PromptRounds,
    sampling: SamplingSettings,
    *,
    weights: StateWeightsSettings,
    seed: int,
    micro_batch_size: int,
    processes: Processes,
) -> Walks:
    """Returns how the student walks in training; trajectory i of round r has its own noise.

    Raises:
        ConfigError: if a step of the walk would have nearly all of the weight (`refuse_tiny_levels`).
    """
    sigmas = backbone.sigmas(sampling.num_steps)
    refuse_tiny_levels(sigmas, sampling)
    return Walks(
        prompts_of_round=groups.round,
        encoder=encoder,
        seeder=lambda index, row: generator(seed, "walk", index, row),
        rank_seeder=lambda index, step: generator(seed, "ranks", index, step),
        schedule=make_schedule(
            sigmas,
            noise_level=sampling.noise_level,
            stochastic_steps=sampling.stochastic_range(),
        ),
        dynamics=sampling.dynamics.build(),
        micro_batch_size=micro_batch_size,
        state_weights=scaled(weights.build(sampling.noise_level)),
        processes=processes,
    )
