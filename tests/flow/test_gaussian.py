"""Log-probabilities and the transition KL, from means and in velocities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from flow_opd.flow.dynamics import diffusion, log_prob_mean, ode_step, sde_step, transition_kl
from flow_opd.types import StepDistribution
from oracles import sde_kl_weight

SHAPE = (3, 2, 2, 2)


def points(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(SHAPE, generator=draw) for _ in range(3))  # type: ignore[return-value]


def test_log_prob_is_that_of_torch() -> None:
    mean, following, spread = points(0)
    step = StepDistribution(mean, spread.abs()[:, :1, :1, :1] + 0.1)
    expected = Normal(step.mean, step.std).log_prob(following).flatten(1).mean(1)
    torch.testing.assert_close(log_prob_mean(step, following), expected, rtol=1e-6, atol=1e-6)


def test_a_deterministic_step_has_no_log_prob() -> None:
    mean, following, _ = points(0)
    step = StepDistribution(mean, torch.tensor([0.1, 0.0, 0.1]).view(3, 1, 1, 1))
    assert torch.isfinite(log_prob_mean(step, following)).tolist() == [True, False, True]


def test_kl_from_means_is_that_of_torch() -> None:
    ours, theirs, _ = points(1)
    std = torch.tensor([0.3, 1.0, 2.0]).view(3, 1, 1, 1)
    expected = kl_divergence(Normal(ours, std), Normal(theirs, std)).flatten(1).sum(1)
    found = transition_kl(StepDistribution(ours, std), StepDistribution(theirs, std))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sigma=st.floats(0.05, 1.0),
    share=st.floats(0.05, 0.95),
    noise_level=st.floats(0.1, 2.0),
    seed=st.integers(0, 1000),
)
def test_kl_from_means_is_the_closed_form_in_velocities(
    sigma: float, share: float, noise_level: float, seed: int
) -> None:
    x, ours, theirs = points(seed)
    grid = (torch.full((3,), sigma), torch.full((3,), sigma * share), torch.full((3,), noise_level))
    found = transition_kl(sde_step(x, ours, *grid), sde_step(x, theirs, *grid))
    expected = sde_kl_weight(*grid) * (ours - theirs).flatten(1).pow(2).sum(1)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


def test_kl_by_hand_and_its_dsigma() -> None:
    # sigma .5 -> .4, a .7: g = .7; w = .1 / 2 (.7 * .5 / 1 + 1 / .7)^2 = .05 * (.35 + 1.428571)^2 = .158166
    grid = (torch.tensor([0.5]), torch.tensor([0.4]), torch.tensor([0.7]))
    assert sde_kl_weight(*grid).item() == pytest.approx(0.158166, abs=1e-6)
    x, ours, theirs = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    found = transition_kl(sde_step(x, ours, *grid), sde_step(x, theirs, *grid)).item()
    assert found == pytest.approx(2 * 0.158166, abs=1e-5)
    # Halving the step halves the KL. The form without dsigma, as peers have it, would not change at all.
    half = (grid[0], torch.tensor([0.45]), grid[2])
    found_half = transition_kl(sde_step(x, ours, *half), sde_step(x, theirs, *half)).item()
    assert found_half == pytest.approx(found / 2, rel=1e-4)
    g = diffusion(*grid).item()
    without_dsigma = (g * 0.5 / (2 * 0.5) + 1 / g) ** 2 / 2 * 2
    assert abs(found - without_dsigma) > 0.5 * without_dsigma


def test_kl_of_the_ode_is_half_the_squared_gap_of_the_means() -> None:
    x, ours, theirs = points(2)
    grid = (torch.full((3,), 0.5), torch.full((3,), 0.4), torch.full((3,), 0.7))
    found = transition_kl(ode_step(x, ours, *grid), ode_step(x, theirs, *grid))
    expected = 0.1**2 * (ours - theirs).flatten(1).pow(2).sum(1) / 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_kl_treats_each_row_by_its_own_std() -> None:
    ours, theirs = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    std = torch.tensor([0.5, 0.0]).view(2, 1, 1, 1)
    assert transition_kl(StepDistribution(ours, std), StepDistribution(theirs, std)).tolist() == [2.0, 0.5]


def test_kl_at_pure_noise_is_finite_and_closed_form() -> None:
    # sigma 1 -> .9: g = .7 sqrt(9) = 2.1; w = .1 / 2 / 2.1^2 = .0113379
    weight = sde_kl_weight(torch.tensor([1.0]), torch.tensor([0.9]), torch.tensor([0.7])).item()
    assert weight == pytest.approx(0.05 / 2.1**2, rel=1e-5)
    assert math.isfinite(weight)
