"""How a policy walks in training: the fused on-policy walk, and the batches that it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flow_opd.config.sampling import SamplingSettings
from flow_opd.config.state_weights import StateWeightsSettings
from flow_opd.errors import ConfigError
from flow_opd.flow.path import make_schedule
from flow_opd.flow.weights import StateWeights, scaled, transition_weights
from flow_opd.method.rollouts import Repeatable, WalkNoise, micro_rows, schedule_rows
from flow_opd.method.rounds import PromptRounds
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import Backbone, Dynamics, PromptEncoder, VelocityField
from flow_opd.seeding import generator
from flow_opd.types import Conditioning, Prompt, Schedule, TransitionBatch

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
    order_seeder: Callable[[int, int], torch.Generator] | None = None
    """(round, step) -> generator of an order of the states; None where all targets see all states."""
    state_weights: StateWeights = transition_weights  # weights of the states, per step
    processes: Processes = ALONE  # who shares the trajectories of a round

    def weights(self) -> Tensor:
        """Returns the weight of the squared velocity error at each step, [T]."""
        return self.state_weights(self.schedule, self.dynamics)


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
    def metrics(self) -> Mapping[str, float]:
        """Nothing beyond the objective's own metrics."""
        return {}

    def round(self, index: int) -> Iterator[Repeatable[TransitionBatch]]:
        """Yields the one update of round `index`."""
        yield Repeatable(partial(self._walks, index))

    def _walks(self, index: int) -> Iterator[TransitionBatch]:
        walks, device = self.walks, self.backbone.device
        prompts = walks.prompts_of_round(index)
        # By task, so that a micro-batch needs few teachers; every row has its own noise in any order.
        own = sorted(walks.processes.rows(len(prompts)), key=lambda row: prompts[row].task)
        with torch.no_grad():
            conditioning = walks.encoder.encode_prompts([prompts[row] for row in own]).to(device)
        orders = self._orders(index, len(prompts))
        for part in micro_rows(len(own), walks.micro_batch_size):
            rows = own[part.start : part.stop]
            yield from on_policy_walk(
                self.student,
                conditioning.rows(list(part)),
                schedule=walks.schedule,
                dynamics=walks.dynamics,
                weights=walks.weights(),
                noise=WalkNoise(
                    self.backbone.latent_shape,
                    walks.schedule,
                    [walks.seeder(index, row) for row in rows],
                    device,
                ),
                orders=None if orders is None else orders[rows],
            )

    def _orders(self, index: int, total: int) -> Tensor | None:
        """Returns a random order of the round's trajectories for each step, as places in (0, 1), [B, T].

        The places of a step are 1 / B apart and begin at a random one, so that those below any share are this
        share in the mean, also where it is no multiple of 1 / B, and as equally many in each round as can be.
        """
        if self.walks.order_seeder is None:
            return None
        orders = []
        for step in range(len(self.walks.schedule)):
            draw = self.walks.order_seeder(index, step)
            order = torch.randperm(total, generator=draw)
            orders.append((order + torch.rand((), generator=draw, dtype=torch.float64)) / total)
        return torch.stack(orders, 1)


def on_policy_walk(
    student: VelocityField,
    conditioning: Conditioning,
    *,
    schedule: Schedule,
    dynamics: Dynamics,
    weights: Tensor,
    noise: WalkNoise,
    orders: Tensor | None = None,
) -> Iterator[TransitionBatch]:
    """Yields, step by step, the states that the student visits, with its velocity still in the graph.

    The state is detached between steps, so the gradient of a direct objective can be taken at each
    step before the walk goes on: one student forward and one backward per step, no stored
    trajectories, no decoded image. The caller runs backward on what it got before asking for more;
    weights must not change during a walk, or the later states are off-policy.

    A state without weight is walked without gradient, and is not yielded.

    Args:
        student: the policy that is trained; called with gradients.
        conditioning: B rows.
        schedule: T steps.
        dynamics: turns a velocity into the Gaussian of a step.
        weights: of the squared velocity error at each step, [T], >= 0, on the CPU.
        noise: of the B trajectories; the walk happens on its device.
        orders: place of each state in a random order of its step's states, [B, T], for targets that are
            evaluated at a share of them.
    """
    state = noise.start
    conditioning = conditioning.to(state.device)
    for step, weight in enumerate(weights.tolist()):
        grid = schedule_rows(schedule, step, len(state), state.device)
        with torch.set_grad_enabled(weight > 0 and torch.is_grad_enabled()):
            velocity = student.velocity(state, grid[0], conditioning)
        if weight > 0:
            yield TransitionBatch(
                state,
                *grid,
                conditioning,
                weight=torch.full_like(grid[0], weight),
                order=None if orders is None else orders[:, step],
                velocity=velocity,
            )
        state = noise.after(dynamics(state, velocity.detach(), *grid), step)


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
        order_seeder=lambda index, step: generator(seed, "ranks", index, step),
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
