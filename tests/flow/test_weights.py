"""What a squared velocity gap counts at each state, against hand numbers and the KL of the steps."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from flow_opd.config.sampling import DynamicsSettings
from flow_opd.config.state_weights import StateWeightsSettings
from flow_opd.flow.dynamics import cps_step, ode_step, sde_step, transition_kl
from flow_opd.flow.path import make_schedule
from flow_opd.flow.weights import (
    given_weights,
    noisy_weights,
    scaled,
    step_response,
    transition_weights,
    velocity_weights,
    x0_weights,
)
from flow_opd.method.rollouts import schedule_rows
from flow_opd.types import Schedule
from oracles import sde_kl_weight


def sd3(window: tuple[int, int] = (0, 8), steps: int = 10) -> Schedule:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    return make_schedule(scheduler.sigmas, noise_level=0.7, stochastic_steps=window)


@pytest.mark.parametrize("dynamics", [sde_step, cps_step, ode_step])
def test_transition_weights_are_those_of_the_kl(dynamics) -> None:
    schedule = sd3((1, 7))
    weights = transition_weights(schedule, dynamics)
    draw = torch.Generator().manual_seed(0)
    x, one, two = (torch.randn(1, 2, 3, 3, generator=draw) for _ in range(3))
    for step in range(len(schedule)):
        grid = schedule_rows(schedule, step, 1)
        kl = transition_kl(dynamics(x, one, *grid), dynamics(x, two, *grid))
        assert kl.item() == pytest.approx((weights[step] * (one - two).square().sum()).item(), rel=1e-4)


def test_the_shares_of_a_quiet_end_by_hand() -> None:
    """Steps 0 to 6, 7, 8, 9: the two quiet states are a twentieth of the loss; with noise they are most."""
    quiet, noisy = (transition_weights(schedule, sde_step) for schedule in (sd3((0, 8)), sd3((0, 9))))

    def shares(weights: torch.Tensor) -> list[float]:
        weights = weights / weights.sum()
        return [weights[:7].sum().item(), weights[7].item(), weights[8].item(), weights[9].item()]

    assert shares(quiet) == pytest.approx([0.42, 0.52, 0.055, 0.0001], abs=0.01)
    assert shares(noisy) == pytest.approx([0.16, 0.20, 0.64, 0.0], abs=0.01)


def test_a_deterministic_step_counts_half_its_squared_length() -> None:
    schedule = sd3((0, 0))
    length = schedule.sigmas[:-1] - schedule.sigmas[1:]
    torch.testing.assert_close(transition_weights(schedule, sde_step), length**2 / 2)


def test_sde_weights_do_not_depend_on_how_the_state_is_walked() -> None:
    noisy, quiet = (noisy_weights(0.7)(sd3(window), sde_step) for window in ((0, 10), (0, 0)))
    assert torch.equal(noisy, quiet)
    schedule = sd3((0, 10))
    grid = (schedule.sigmas[:-1], schedule.sigmas[1:], schedule.noise_levels)
    torch.testing.assert_close(noisy, sde_kl_weight(*grid), rtol=1e-4, atol=0)
    for name in ("ode", "cps"):
        assert torch.equal(noisy_weights(0.7)(sd3(), DynamicsSettings.of(name).build()), noisy)


def test_x0_weights_count_a_gap_in_the_predicted_image() -> None:
    schedule = sd3()
    gap = torch.full((10,), 0.3)
    x0_gap = schedule.sigmas[:-1] * gap  # x0_hat = x - sigma v
    torch.testing.assert_close(x0_weights(schedule, sde_step) * gap**2, x0_gap**2)


@pytest.mark.parametrize("weights", [velocity_weights, x0_weights, noisy_weights(0.7)])
def test_every_choice_has_the_size_of_the_transition_kl(weights) -> None:
    schedule = sd3()
    found = scaled(weights)(schedule, sde_step)
    assert found.sum().item() == pytest.approx(transition_weights(schedule, sde_step).sum().item(), rel=1e-5)
    relative = weights(schedule, sde_step)
    torch.testing.assert_close(found / found[0], relative / relative[0])


def test_the_transition_kl_itself_is_not_scaled() -> None:
    schedule = sd3()
    torch.testing.assert_close(
        scaled(transition_weights)(schedule, sde_step),
        transition_weights(schedule, sde_step),
        rtol=1e-6,
        atol=0,
    )


def test_given_weights_keep_their_zeros() -> None:
    found = scaled(given_weights((1.0, 0.0, 2.0)))(sd3((0, 1), steps=3), sde_step)
    assert found[1] == 0
    assert (found[2] / found[0]).item() == pytest.approx(2.0)


def test_the_names() -> None:
    assert StateWeightsSettings.kind.names() == ["velocity", "transition", "sde", "x0", "custom"]


def test_a_step_is_linear_in_its_velocity() -> None:
    schedule = sd3((0, 5))
    response, std = step_response(schedule, sde_step)
    x, v = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    for step in range(len(schedule)):
        grid = schedule_rows(schedule, step, 1)
        still, moved = (sde_step(x, velocity, *grid) for velocity in (torch.zeros_like(v), v))
        torch.testing.assert_close(moved.mean - still.mean, response[step] * v, rtol=1e-4, atol=1e-5)
        assert moved.std.item() == std[step]


def test_given_weights_are_relative_at_any_size() -> None:
    schedule = sd3((0, 1), steps=3)
    usual = scaled(given_weights((1.0, 0.0, 2.0)))(schedule, sde_step)
    for size in (1e-300, 1e300):
        assert torch.equal(scaled(given_weights((size, 0.0, 2 * size)))(schedule, sde_step), usual)
