"""Reverse steps against a flow whose marginals are known, against Euler, and against numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from errors import refused
from flow_opd.config.sampling import DynamicsSettings
from flow_opd.errors import ConfigError
from flow_opd.flow.dynamics import cps_step, diffusion, log_prob_mean, ode_step, sample, sde_step
from flow_opd.flow.path import make_schedule
from flow_opd.method.rollouts import schedule_rows
from flow_opd.protocols import Dynamics
from flow_opd.types import StepDistribution
from tiny import GaussianFlow, unconditional

FLOW = GaussianFlow(mean=1.5, std=0.5)


def rows(*values: float) -> Tensor:
    return torch.tensor(values)


def walk(dynamics: Dynamics, *, noise_level: float, num_steps: int, at: list[float]) -> dict[float, Tensor]:
    """Returns the states of 20,000 exact-flow trajectories (80,000 numbers) at some noise levels."""
    draw = torch.Generator().manual_seed(0)
    schedule = make_schedule(
        torch.linspace(1, 0, num_steps + 1), noise_level=noise_level, stochastic_steps=(0, num_steps)
    )
    state = torch.randn(20_000, 1, 2, 2, generator=draw)
    seen = {}
    for step in range(num_steps):
        grid = schedule_rows(schedule, step, len(state))
        velocity = FLOW.velocity(state, grid[0], unconditional(0))
        state = sample(dynamics(state, velocity, *grid), torch.randn(state.shape, generator=draw))
        for sigma in at:
            if abs(float(schedule.sigmas[step + 1]) - sigma) < 1e-6:
                seen[sigma] = state
    return seen


def test_sde_keeps_the_marginals_of_the_flow() -> None:
    levels = [0.9, 0.75, 0.5, 0.25, 0.1, 0.0]
    seen = walk(sde_step, noise_level=0.7, num_steps=400, at=levels)
    assert list(seen) == levels
    for sigma, state in seen.items():
        std = math.sqrt(FLOW.marginal_variance(sigma))
        # The error of 80,000 draws is std / 283 in the mean and std / 400 in the std; the test below
        # gives the error of the grid: 1.7 % of the std at .9 and less afterwards.
        assert state.mean().item() == pytest.approx(FLOW.marginal_mean(sigma), abs=5 * std / 283)
        assert state.std().item() == pytest.approx(std, rel=0.017 + 3 / 400)


def exact_moments(noise_level: float, num_steps: int) -> dict[float, tuple[float, float]]:
    """Returns errors of mean and (relative) std of the exact flow's walk: each step is affine in x."""
    schedule = make_schedule(
        torch.linspace(1, 0, num_steps + 1), noise_level=noise_level, stochastic_steps=(0, num_steps)
    )
    probe = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    mean, variance, errors = 0.0, 1.0, {}
    for step in range(num_steps):
        grid = schedule_rows(schedule, step, 2)
        moved = sde_step(probe, FLOW.velocity(probe, grid[0], unconditional(0)), *grid)
        offset, one = moved.mean.flatten().tolist()
        mean = (one - offset) * mean + offset
        variance = (one - offset) ** 2 * variance + float(moved.std[0]) ** 2
        sigma = round(float(grid[1][0]), 4)
        exact = FLOW.marginal_variance(sigma)
        errors[sigma] = (mean - FLOW.marginal_mean(sigma), math.sqrt(variance / exact) - 1)
    return errors


@pytest.mark.parametrize("noise_level", [0.3, 0.7, 1.2])
def test_finer_grids_bring_the_sde_closer_to_the_marginals(noise_level: float) -> None:
    coarse, fine = exact_moments(noise_level, 100), exact_moments(noise_level, 800)
    for sigma in (0.9, 0.75, 0.5, 0.25):
        assert abs(fine[sigma][0]) < 1e-3
        assert abs(fine[sigma][1]) < 0.012
        assert abs(fine[sigma][1]) < max(0.003, 0.75 * abs(coarse[sigma][1]))


def test_noise_without_its_drift_does_not_keep_the_marginals() -> None:
    """The control of the test above: it can tell a wrong drift from the right one."""

    def careless(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor):  # type: ignore[no-untyped-def]
        right = sde_step(x, v, sigma, sigma_next, noise_level)
        return type(right)(ode_step(x, v, sigma, sigma_next, noise_level).mean, right.std)

    state = walk(careless, noise_level=0.7, num_steps=200, at=[0.0])[0.0]
    assert state.std().item() > 1.1 * FLOW.std


@pytest.mark.parametrize("dynamics", ["sde", "cps", "ode"])
def test_without_noise_every_step_is_euler(dynamics: str) -> None:
    draw = torch.Generator().manual_seed(1)
    x, v = (torch.randn(5, 2, 3, 3, generator=draw) for _ in range(2))
    sigma, after = rows(1.0, 0.9, 0.5, 0.2, 0.05), rows(0.9, 0.7, 0.4, 0.1, 0.0)
    step = DynamicsSettings.of(dynamics).build()(x, v, sigma, after, torch.zeros(5))
    assert torch.equal(step.std, torch.zeros(5, 1, 1, 1))
    euler = x + v * (after - sigma).view(-1, 1, 1, 1)
    if dynamics == "cps":  # goes through x0_hat and eps_hat, so rounding differs
        torch.testing.assert_close(step.mean, euler, rtol=0, atol=1e-6)
    else:
        assert torch.equal(step.mean, euler)


def test_sde_step_by_hand() -> None:
    # sigma .5, a .7: g = .7; drift = .49 / 1 = .49; dsigma = -.1
    # mean = 2 (1 - .049) + 3 (1 + .49 * .5) * -.1 = 1.902 - .3735 = 1.5285; std = .7 sqrt(.1) = .221359
    step = sde_step(
        torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), rows(0.5), rows(0.4), rows(0.7)
    )
    assert step.mean.item() == pytest.approx(1.5285, abs=1e-6)
    assert step.std.item() == pytest.approx(0.221359, abs=1e-6)


def test_pure_noise_is_finite_and_uses_the_next_level() -> None:
    x = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(2))
    for dynamics in DynamicsSettings.kind.names():
        step = DynamicsSettings.of(dynamics).build()(x, -x, rows(1.0), rows(0.9), rows(0.7))
        assert torch.isfinite(step.mean).all()
        assert torch.isfinite(step.std).all()
    # .7 sqrt(.9 / .1) = 2.1, while sigma .9 itself gives the same g: 1 is replaced, .9 is not
    assert diffusion(rows(1.0, 0.9), rows(0.9, 0.8), rows(0.7, 0.7)).tolist() == pytest.approx([2.1, 2.1])


def test_the_code_of_flow_grpo_differs_in_the_first_step_alone() -> None:
    """Written anew from its description: sigma = 1 is replaced below the line only."""
    draw = torch.Generator().manual_seed(4)
    x, v, noise = (torch.randn(1, 16, 64, 64, generator=draw) for _ in range(3))
    levels = FlowMatchEulerDiscreteScheduler(shift=3.0)
    levels.set_timesteps(10)
    sigmas, gaps = levels.sigmas, []
    for step in range(9):
        sigma, after = sigmas[step], sigmas[step + 1]
        below = after if sigma == 1 else sigma
        g2 = 0.49 * sigma / (1 - below)
        mean = x * (1 + g2 / (2 * sigma) * (after - sigma))
        mean += v * (1 + g2 * (1 - sigma) / (2 * sigma)) * (after - sigma)
        theirs = StepDistribution(mean, (g2 * (sigma - after)).sqrt().view(1, 1, 1, 1))
        ours = sde_step(x, v, sigma.view(1), after.view(1), rows(0.7))
        log_probs = [log_prob_mean(each, sample(each, noise)) for each in (ours, theirs)]
        apart = (ours.mean - theirs.mean).norm() / theirs.mean.norm()
        gaps.append((apart.item(), (log_probs[0] - log_probs[1]).item(), ours.std.item(), theirs.std.item()))
    assert gaps[0] == pytest.approx((0.013, 0.0203, 0.6859, 0.7000), abs=1e-4)
    for apart, log_prob, std, their_std in gaps[1:]:
        assert apart < 1e-6
        assert log_prob == pytest.approx(0, abs=1e-6)
        assert std == pytest.approx(their_std, rel=1e-6)


def test_cps_keeps_the_noise_of_its_grid() -> None:
    """With the true velocity of a pair (x0, eps), the next state holds noise of std sigma' exactly."""
    draw = torch.Generator().manual_seed(3)
    x0, eps, fresh = (torch.randn(20_000, 1, 2, 2, generator=draw) for _ in range(3))
    for sigma, after in ((1.0, 0.8), (0.8, 0.5), (0.5, 0.1)):
        count = torch.ones(len(x0))
        step = cps_step((1 - sigma) * x0 + sigma * eps, eps - x0, sigma * count, after * count, 0.6 * count)
        noise = sample(step, fresh) - (1 - after) * x0
        assert noise.std().item() == pytest.approx(after, rel=0.01)
        kept = (step.mean - (1 - after) * x0).std()
        assert (kept**2 + step.std[0, 0, 0, 0] ** 2).sqrt().item() == pytest.approx(after, rel=0.01)
        assert step.std[0, 0, 0, 0].item() == pytest.approx(after * math.sin(0.3 * math.pi), rel=1e-6)


def test_a_negative_noise_level_is_refused_by_the_schedule() -> None:
    with pytest.raises(ValueError, match="negative"):
        make_schedule(torch.tensor([1.0, 0.5, 0.0]), noise_level=-0.1, stochastic_steps=(0, 1))


def test_a_typo_in_the_dynamics_names_the_nearest() -> None:
    with refused(ConfigError, names=["'sdee'", "'sde'"]):
        DynamicsSettings.of("sdee").build()
