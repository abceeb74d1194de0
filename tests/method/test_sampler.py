"""Rollouts: reproducible rows, honest log-probabilities, ratios of exactly one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from flow_opd.config.sampling import DynamicsSettings
from flow_opd.config.state_weights import StateWeightsSettings
from flow_opd.flow.dynamics import cps_step, log_prob_mean, sde_step
from flow_opd.flow.path import make_schedule, without_noise
from flow_opd.flow.weights import (
    StateWeights,
    given_weights,
    noisy_weights,
    step_response,
    transition_weights,
    velocity_weights,
    x0_weights,
)
from flow_opd.method.groups import GroupRollouts, GroupSampling
from flow_opd.method.grpo import flow_grpo
from flow_opd.method.rollouts import (
    WalkNoise,
    draw_noise,
    micro_rows,
    rollout,
    schedule_rows,
    steps_with_density,
)
from flow_opd.method.transitions import advantage_weights, join_rollouts, transitions
from flow_opd.protocols import Dynamics, VelocityField
from flow_opd.rewards.table import TrainingReward, TrainingRewards
from flow_opd.types import Conditioning, Prompt, RewardScores, Rollout, TransitionBatch
from tiny import PROMPTS, REDNESS, SHAPE, SIGN, GaussianFlow, Tiny, unconditional

FLOW = GaussianFlow(mean=0.5, std=0.8)
GRID = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def seeds(*rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in rows]


def draw(rows: tuple[int, ...], window: tuple[int, int] = (0, 3), dynamics: str = "sde") -> Rollout:
    return rollout(
        FLOW,
        unconditional(len(rows)),
        [Prompt("", "any")] * len(rows),
        schedule=(schedule := make_schedule(GRID, noise_level=0.7, stochastic_steps=window)),
        dynamics=DynamicsSettings.of(dynamics).build(),
        noise=WalkNoise((2, 2, 2), schedule, seeds(*rows), torch.device("cpu")),
    )


def ratios(tiny: Tiny, batch: TransitionBatch) -> Tensor:
    """exp of the log-ratio of a batch under the student as it is now, computed as the objective does."""
    assert batch.next_latents is not None
    assert batch.behaviour_log_prob is not None
    velocity = tiny.student.velocity(batch.latents, batch.sigma, batch.conditioning)
    step = sde_step(batch.latents, velocity, batch.sigma, batch.sigma_next, batch.noise_level)
    return torch.exp(log_prob_mean(step, batch.next_latents) - batch.behaviour_log_prob)


def test_a_row_is_a_function_of_its_own_generator() -> None:
    together, alone = draw((3, 4, 5)), draw((4,))
    torch.testing.assert_close(together.latents[1], alone.latents[0])
    torch.testing.assert_close(together.log_prob_mean[1], alone.log_prob_mean[0])
    assert not torch.equal(together.latents[0], together.latents[1])


def test_log_probs_are_those_of_the_steps_taken() -> None:
    drawn = draw((0, 1))
    for step in range(3):
        grid = schedule_rows(drawn.schedule, step, 2)
        x = drawn.latents[:, step]
        gaussian = sde_step(x, FLOW.velocity(x, grid[0], unconditional(2)), *grid)
        expected = Normal(gaussian.mean, gaussian.std).log_prob(drawn.latents[:, step + 1])
        torch.testing.assert_close(drawn.log_prob_mean[:, step], expected.flatten(1).mean(1))
    assert drawn.log_prob_mean[:, 3].tolist() == [0.0, 0.0]
    assert torch.equal(drawn.x0, drawn.latents[:, 4])


def test_deterministic_steps_take_no_noise_from_the_generators() -> None:
    generator = seeds(0)[0]
    drawn = draw((0,), window=(1, 2))
    assert torch.equal(drawn.latents[:, 0], draw_noise((2, 2, 2), [generator]))
    grid = schedule_rows(drawn.schedule, 1, 1)
    x = drawn.latents[:, 1]
    gaussian = sde_step(x, FLOW.velocity(x, grid[0], unconditional(1)), *grid)
    fresh = draw_noise((2, 2, 2), [generator])
    torch.testing.assert_close(drawn.latents[:, 2], gaussian.mean + gaussian.std * fresh)
    assert (drawn.log_prob_mean != 0).tolist() == [[False, True, False, False]]


def test_the_last_step_of_cps_has_no_density_and_is_left_out() -> None:
    schedule = make_schedule(GRID, noise_level=0.7, stochastic_steps=(0, 4))
    assert steps_with_density(schedule, sde_step) == [0, 1, 2, 3]
    assert steps_with_density(schedule, cps_step) == [0, 1, 2]
    drawn = draw((0, 1), window=(0, 4), dynamics="cps")
    assert drawn.log_prob_mean[:, 3].tolist() == [0.0, 0.0]
    assert torch.isfinite(drawn.latents).all()


def test_transitions_are_the_stored_steps_in_micro_batches() -> None:
    drawn = draw((0, 1, 2, 3, 4))
    advantages = torch.arange(20.0).view(5, 4)
    batches = list(
        transitions(drawn, advantages, weights=WEIGHTS, rows=[4, 0, 2], steps=range(1, 3), micro_batch_size=2)
    )
    assert [len(batch) for batch in batches] == [2, 1, 2, 1]
    third = batches[2]
    assert torch.equal(third.latents, drawn.latents[[4, 0], 2])
    assert torch.equal(third.next_latents, drawn.latents[[4, 0], 3])
    assert third.advantage is not None
    assert third.advantage.tolist() == [18.0, 2.0]
    assert third.weight is not None
    assert third.weight.tolist() == [3.0, 3.0]
    assert third.sigma.tolist() == pytest.approx([0.5, 0.5])
    assert third.sigma_next.tolist() == pytest.approx([0.2, 0.2])
    assert list(map(list, micro_rows(5, 2))) == [[0, 1], [2, 3], [4]]


def test_joined_rollouts_are_one_big_rollout() -> None:
    joined, whole = join_rollouts([draw((0, 1)), draw((2,))]), draw((0, 1, 2))
    torch.testing.assert_close(joined.latents, whole.latents)
    torch.testing.assert_close(joined.log_prob_mean, whole.log_prob_mean)
    assert len(joined.prompts) == len(joined.conditioning) == 3


def test_the_first_update_of_a_real_rollout_has_ratios_of_exactly_one(tiny: Tiny) -> None:
    drawn = rollout(
        tiny.student,
        tiny.backbone.encode_prompts(PROMPTS),
        PROMPTS,
        schedule=(
            schedule := make_schedule(tiny.backbone.sigmas(4), noise_level=0.7, stochastic_steps=(0, 4))
        ),
        dynamics=sde_step,
        noise=WalkNoise(tiny.backbone.latent_shape, schedule, seeds(0, 1, 2, 3), tiny.backbone.device),
    )
    for batch in transitions(
        drawn, torch.zeros(4, 4), weights=WEIGHTS, rows=range(4), steps=range(4), micro_batch_size=4
    ):
        assert ratios(tiny, batch).tolist() == [1.0] * 4


@pytest.mark.parametrize("micro_batch_size", [3, 8])
def test_group_rollouts_start_on_policy(tiny: Tiny, micro_batch_size: int) -> None:
    source = GroupRollouts(
        tiny.student,
        tiny.backbone,
        tiny.walks(prompts=2, micro_batch_size=micro_batch_size),
        REDNESS,
        GroupSampling(group_size=4, steps_of_round=lambda index: range(2)),
    )
    (update,) = source.round(0)
    batches = list(update)
    assert sum(len(batch) for batch in batches) == 2 * 8
    for batch in batches:
        assert ratios(tiny, batch).tolist() == [1.0] * len(batch)
    with torch.no_grad():
        for parameter in tiny.parameters.values():
            parameter.mul_(1.01)
    moved = torch.cat([ratios(tiny, batch) for batch in batches])
    assert (moved != 1).all()  # the control: the ratio does see the weights


def test_group_rollouts_score_what_they_made_and_split_by_trajectory(tiny: Tiny) -> None:
    source = GroupRollouts(
        tiny.student,
        tiny.backbone,
        tiny.walks(prompts=2, micro_batch_size=3),
        REDNESS,
        GroupSampling(group_size=4, steps_of_round=lambda index: [index], updates_per_round=3),
    )
    updates = [list(update) for update in source.round(1)]
    assert [sum(map(len, update)) for update in updates] == [3, 3, 2]
    rows = [batch for update in updates for batch in update]
    assert all(
        float(batch.sigma[0]) == pytest.approx(float(tiny.walks().schedule.sigmas[1])) for batch in rows
    )
    advantages = torch.cat([batch.advantage for batch in rows if batch.advantage is not None])
    torch.testing.assert_close(advantages.view(2, 4).mean(1), torch.zeros(2), rtol=0, atol=1e-6)
    assert (advantages.view(2, 4).std(1, correction=0) > 0.9).all()
    assert source.metrics["silent_groups"] == 0
    assert source.metrics["reward_spread"] > 0
    tasks = [task for batch in rows for task in batch.conditioning.tasks]
    assert tasks == [PROMPTS[1].task] * 4 + [PROMPTS[2].task] * 4


@pytest.mark.parametrize("micro_batch_size", [3, 8])
def test_a_group_may_start_from_one_noise_and_then_parts(tiny: Tiny, micro_batch_size: int) -> None:
    def states(shared_start: bool, step: int) -> Tensor:
        source = GroupRollouts(
            tiny.student,
            tiny.backbone,
            tiny.walks(prompts=2, micro_batch_size=micro_batch_size),
            REDNESS,
            GroupSampling(group_size=4, shared_start=shared_start, steps_of_round=lambda index: [step]),
        )
        (update,) = source.round(0)
        return torch.cat([batch.latents for batch in update]).flatten(1)

    start, second = states(True, 0), states(True, 1)
    assert torch.unique(start, dim=0).shape[0] == 2, "a noise for each group"
    assert torch.equal(start[:4], start[:1].expand(4, -1))
    assert torch.unique(second, dim=0).shape[0] == 8, "each trajectory has steps of its own"
    assert torch.unique(states(False, 0), dim=0).shape[0] == 8


def test_only_the_steps_that_a_round_trains_add_noise(tiny: Tiny) -> None:
    source = GroupRollouts(
        tiny.student,
        tiny.backbone,
        tiny.walks(prompts=1, micro_batch_size=8),
        REDNESS,
        GroupSampling(group_size=2, shared_start=True, steps_of_round=lambda index: [1], drawn_from=range(2)),
    )
    (update,) = source.round(0)
    (batch,) = update
    assert float(batch.noise_level[0]) > 0
    assert torch.equal(batch.latents[0], batch.latents[1]), "step 0 was walked without noise"
    assert batch.next_latents is not None
    assert not torch.equal(batch.next_latents[0], batch.next_latents[1])


def test_advantages_are_cut_before_steps_are_weighed(tiny: Tiny) -> None:
    source = GroupRollouts(
        tiny.student,
        tiny.backbone,
        tiny.walks(prompts=2),
        REDNESS,
        GroupSampling(
            group_size=2,
            steps_of_round=lambda index: range(2),
            advantages=lambda scores: torch.tensor([9.0, -9.0, 1.0, -0.5]),
            advantage_clip=5.0,
            state_weights=velocity_weights,
        ),
    )
    (update,) = source.round(0)
    weights = advantage_weights(source.walks.schedule, sde_step, range(2), velocity_weights)
    assert weights.max() > 1.3 > 0.7 > weights[:2].min()
    for batch, weight in zip(update, weights.tolist(), strict=False):
        assert batch.advantage is not None
        assert batch.advantage.tolist() == pytest.approx([5 * weight, -5 * weight, weight, -0.5 * weight])


def test_every_reward_is_read_over_the_images_that_it_judged(tiny: Tiny) -> None:
    class Stated:
        scale = (0.0, 9.0)

        def __init__(self, name: str, values: list[float]) -> None:
            self.name, self.values = name, torch.tensor(values)

        def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
            return RewardScores(
                self.name, self.values, torch.ones(len(prompts), dtype=torch.bool), self.scale
            )

    rewards = [
        TrainingReward(Stated("shape", [1.0, 3.0]), 1.0, (SHAPE,)),
        TrainingReward(Stated("sign", [5.0, 5.0]), 2.0, (SIGN,)),
        TrainingReward(Stated("idle", [0.0]), 1.0, ("idle",)),
    ]
    sampling = GroupSampling(group_size=2, steps_of_round=lambda index: range(2))
    scorer = TrainingRewards(rewards)
    source = GroupRollouts(tiny.student, tiny.backbone, tiny.walks(prompts=2), scorer, sampling)
    (update,) = source.round(0)
    assert source.metrics == {
        "reward": (1 + 3 + 10 + 10) / 4,
        "reward/shape": 2.0,
        "reward/sign": 5.0,
        "reward_spread": (1 + 0) / 2,
        "silent_groups": 0.5,
    }
    batch = next(iter(update))
    assert batch.advantage is not None
    assert batch.advantage.tolist() == pytest.approx([-1, 1, 0, 0], abs=2e-4)


# sigma .8 -> .5: g = 1.4, std = 1.4 sqrt(.3), d mean / d v = .3 (1 + 1.96 * .2 / 1.6)
# sigma .5 -> .2: g =  .7, std =  .7 sqrt(.3), d mean / d v = .3 (1 +  .49 * .5 / 1.0)
# The responses are alike, so sqrt(w) is half as large at the first: sqrt(1 / w) is as 2 to 1.
@pytest.mark.parametrize(
    ("weights", "first", "second"),
    [
        (velocity_weights, 2.0, 1.0),
        (x0_weights, 2 * 0.8, 0.5),
        (given_weights((0.0, 9.0, 4.0, 0.0)), 2 * 3.0, 2.0),
        (transition_weights, 1.0, 1.0),
    ],
)
def test_weights_of_advantages_by_hand(weights: StateWeights, first: float, second: float) -> None:
    schedule = make_schedule(GRID, noise_level=0.7, stochastic_steps=(0, 3))
    mean = (first + second) / 2
    found = advantage_weights(schedule, sde_step, [1, 2], weights)
    assert found.tolist() == pytest.approx([0, first / mean, second / mean, 0])


@pytest.mark.parametrize("steps", [[0], [1, 2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("dynamics", [sde_step, cps_step])
def test_by_transition_weights_advantages_stay_to_the_bit(dynamics: Dynamics, steps: list[int]) -> None:
    """Steps that a round does not train are quiet and count nothing; the SDE's own weights are the same."""
    schedule = make_schedule(GRID, noise_level=0.7, stochastic_steps=(0, 3))
    quiet = without_noise(schedule, {0, 1, 2} - set(steps))
    same = [transition_weights, *([noisy_weights(0.7)] if dynamics is sde_step else [])]
    for weights in same:
        found = advantage_weights(quiet, dynamics, steps, weights)
        assert found.tolist() == [float(step in steps) for step in range(4)]


@pytest.mark.parametrize("dynamics", [sde_step, cps_step])
def test_velocity_weights_are_std_over_response(dynamics: Dynamics) -> None:
    schedule = without_noise(make_schedule(GRID, noise_level=0.7, stochastic_steps=(0, 3)), {1})
    response, std = step_response(schedule, dynamics)
    sizes = (std / response.abs())[[0, 2]]
    found = advantage_weights(schedule, dynamics, [0, 2], velocity_weights)
    torch.testing.assert_close(found[[0, 2]], sizes / sizes.mean(), rtol=1e-6, atol=0)
    assert found[[1, 3]].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["velocity", "x0", "transition"])
def test_a_step_counts_as_much_as_its_state_weighs(name: str) -> None:
    """The gradient of log pi with respect to the velocity, times the weight, has a variance as u."""
    schedule = make_schedule(GRID, noise_level=0.7, stochastic_steps=(0, 3))
    weights = advantage_weights(schedule, sde_step, range(3), StateWeightsSettings.of(name).build(0.7))
    sizes = []
    for step in range(3):
        rows = schedule_rows(schedule, step, 4000)
        velocity = torch.zeros(4000, 1, 1, 1, requires_grad=True)
        gaussian = sde_step(torch.zeros(4000, 1, 1, 1), velocity, *rows)
        noise = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(step))
        taken = (gaussian.mean + gaussian.std * noise).detach()
        (gradient,) = torch.autograd.grad(log_prob_mean(gaussian, taken).sum(), velocity)
        sizes.append(float(gradient.std() * weights[step]))
    roots = StateWeightsSettings.of(name).build(0.7)(schedule, sde_step)[:3].sqrt().tolist()
    expected = [root * sizes[0] / roots[0] for root in roots]
    assert sizes == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("weights", [transition_weights, velocity_weights, given_weights((1.0, 7.0, 0.0))])
def test_state_weights_weigh_advantages_and_leave_the_kl(tiny: Tiny, weights: StateWeights) -> None:
    def rows(**choice: StateWeights) -> list[TransitionBatch]:
        sampling = GroupSampling(group_size=4, steps_of_round=lambda index: range(2), **choice)
        walks = tiny.walks(prompts=2)
        (update,) = GroupRollouts(tiny.student, tiny.backbone, walks, REDNESS, sampling).round(0)
        return list(update)

    schedule = tiny.walks().schedule
    factors = advantage_weights(schedule, sde_step, range(2), weights)
    assert (factors[0] == factors[1]) == (weights is transition_weights)
    kl = transition_weights(schedule, sde_step)
    for step, (plain, weighed) in enumerate(zip(rows(), rows(state_weights=weights), strict=True)):
        assert plain.advantage is not None
        assert weighed.advantage is not None
        assert weighed.weight is not None
        assert torch.equal(weighed.advantage, plain.advantage * factors[step])
        assert weighed.weight.tolist() == [kl[step].item()] * 8


class Counted:
    """A field that notes how many rows it was asked for, call by call, without and with gradients."""

    def __init__(self, field: VelocityField) -> None:
        self.field = field
        self.rows: dict[bool, list[int]] = {False: [], True: []}

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.rows[torch.is_grad_enabled()].append(len(latents))
        return self.field.velocity(latents, sigma, conditioning)


class Alone:
    """A reward that judges a picture by its own brightness, so that the images of a group differ."""

    name, scale, judge = "alone", (0.0, 1.0), "brightness"

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        return RewardScores(
            self.name, images.mean((1, 2, 3)), torch.ones(len(prompts), dtype=torch.bool), self.scale
        )


def shared_round(
    tiny: Tiny, field: VelocityField, *, shared: bool, micro_batch_size: int = 8
) -> tuple[list[TransitionBatch], dict[str, Tensor]]:
    """A round of two groups whose second and third step are trained: its micro-batches and gradients."""
    source, objective = flow_grpo(
        field,
        tiny.policy(None),
        tiny.backbone,
        tiny.walks(prompts=2, num_steps=4, micro_batch_size=micro_batch_size),
        TrainingRewards([TrainingReward(Alone())]),
        GroupSampling(
            group_size=4, shared_start=True, steps_of_round=lambda index: [1, 2], drawn_from=range(3)
        ),
        clip_range=1e-4,
        kl_weight=0.0,
    )
    (update,) = source.round(0)
    batches = [batch if shared else replace(batch, state_ids=None) for batch in update]
    for parameter in tiny.parameters.values():
        parameter.grad = None
    for batch in batches:
        objective(batch).total.backward()  # type: ignore[no-untyped-call]
    found = {name: each.grad.clone() for name, each in tiny.parameters.items() if each.grad is not None}
    return batches, found


def test_a_group_is_asked_once_until_noise_parts_it(tiny: Tiny) -> None:
    counted = Counted(tiny.student)
    shared_round(tiny, counted, shared=True)
    assert counted.rows[False] == [2, 2, 8, 8], "two groups of four: step 1 adds the first noise"
    assert counted.rows[True] == [2, 8]


def test_micro_batches_that_cut_a_group_ask_for_their_own_part_of_it(tiny: Tiny) -> None:
    counted = Counted(tiny.student)
    shared_round(tiny, counted, shared=True, micro_batch_size=6)
    assert counted.rows[False] == [2, 2, 6, 6, 1, 1, 2, 2]
    assert counted.rows[True] == [2, 1, 6, 2]


def test_asking_a_group_once_changes_neither_states_nor_gradients(tiny: Tiny) -> None:
    once, gradients = shared_round(tiny, tiny.student, shared=True)
    every, expected = shared_round(tiny, tiny.student, shared=False)
    assert once[0].state_ids == (0, 0, 0, 0, 1, 1, 1, 1)
    assert once[1].state_ids is None
    for ours, theirs in zip(once, every, strict=True):
        assert torch.equal(ours.latents, theirs.latents)
    assert gradients.keys() == expected.keys()
    assert max(float(each.abs().max()) for each in expected.values()) > 1e-3
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


def test_a_shared_walk_is_the_walk_of_every_row(tiny: Tiny) -> None:
    walks = tiny.walks(num_steps=4)
    conditioning = tiny.backbone.encode_prompts([PROMPTS[row] for row in (0, 1, 0, 1)])

    def walked(starts: tuple[int, ...] | None) -> Rollout:
        return rollout(
            tiny.student,
            conditioning,
            [PROMPTS[row] for row in (0, 1, 0, 1)],
            schedule=walks.schedule,
            dynamics=walks.dynamics,
            noise=WalkNoise(
                tiny.backbone.latent_shape,
                walks.schedule,
                seeds(0, 1, 2, 3),
                torch.device("cpu"),
                starts=seeds(7, 8, 7, 8),
            ),
            starts=starts,
        )

    together, apart = walked((7, 8, 7, 8)), walked(None)
    torch.testing.assert_close(together.latents, apart.latents, rtol=1e-6, atol=1e-6)
    assert together.state_ids(0) == (7, 8, 7, 8)
    assert together.state_ids(1) is None
    assert apart.state_ids(0) is None
