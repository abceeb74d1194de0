"""The path, its noise levels, windows of stochastic steps, and guidance."""

from __future__ import annotations

import pytest
import torch

from flow_opd.flow.path import (
    guided,
    logit_normal_sigmas,
    make_schedule,
    shifted_uniform_sigmas,
    target_velocity,
    without_noise,
)
from oracles import ode_schedule


def test_the_target_velocity_leads_back_to_the_data() -> None:
    draw = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 1, 2, 2, generator=draw) for _ in range(2))
    sigma = torch.tensor([0.2, 0.5, 1.0])
    latents = (1 - sigma.view(-1, 1, 1, 1)) * x0 + sigma.view(-1, 1, 1, 1) * noise
    velocity = target_velocity(x0, noise)
    assert torch.equal(velocity, noise - x0)
    torch.testing.assert_close(latents - sigma.view(-1, 1, 1, 1) * velocity, x0)


def test_shifted_sigmas_by_their_median() -> None:
    plain = shifted_uniform_sigmas(20_001, shift=1.0, generator=torch.Generator().manual_seed(0))
    shifted = shifted_uniform_sigmas(20_001, shift=3.0, generator=torch.Generator().manual_seed(0))
    assert plain.median().item() == pytest.approx(0.5, abs=0.01)
    assert shifted.median().item() == pytest.approx(0.75, abs=0.01)  # 3 * .5 / (1 + 2 * .5)
    assert shifted.min() >= 0
    assert shifted.max() < 1
    # Both ends are visited: P(sigma > .95) = P(u > .8636), P(sigma < .3) = P(u < .125).
    assert (shifted > 0.95).float().mean().item() == pytest.approx(0.1364, abs=0.01)
    assert (shifted < 0.3).float().mean().item() == pytest.approx(0.125, abs=0.01)


def test_logit_normal_sigmas_prefer_the_middle() -> None:
    sigmas = logit_normal_sigmas(20_001, generator=torch.Generator().manual_seed(0))
    assert sigmas.median().item() == pytest.approx(0.5, abs=0.01)
    # P(.27 < sigma < .73) = P(|normal| < 1)
    middle = (sigmas > 0.26894) & (sigmas < 0.73106)
    assert middle.float().mean().item() == pytest.approx(0.6827, abs=0.01)


def test_a_window_of_stochastic_steps() -> None:
    schedule = make_schedule(torch.tensor([1.0, 0.8, 0.5, 0.0]), noise_level=0.7, stochastic_steps=(1, 2))
    assert schedule.noise_levels.tolist() == pytest.approx([0.0, 0.7, 0.0])
    assert len(schedule) == 3
    assert ode_schedule(schedule.sigmas).noise_levels.tolist() == [0.0] * 3


def test_grids_and_windows_that_make_no_sense_are_refused() -> None:
    for sigmas in ([1.0, 0.5, 0.5, 0.0], [0.0, 0.5, 1.0]):
        with pytest.raises(ValueError, match="descend"):
            make_schedule(torch.tensor(sigmas), noise_level=0.7, stochastic_steps=(0, 1))
    for window in ((0, 3), (-1, 1), (2, 1)):
        with pytest.raises(ValueError, match="outside"):
            make_schedule(torch.tensor([1.0, 0.5, 0.0]), noise_level=0.7, stochastic_steps=window)


def test_silenced_steps_are_deterministic_and_the_others_stay() -> None:
    schedule = make_schedule(torch.tensor([1.0, 0.8, 0.5, 0.0]), noise_level=0.7, stochastic_steps=(0, 3))
    quiet = without_noise(schedule, {0, 2})
    assert quiet.noise_levels.tolist() == pytest.approx([0.0, 0.7, 0.0])
    assert torch.equal(quiet.sigmas, schedule.sigmas)
    assert schedule.noise_levels.tolist() == pytest.approx([0.7] * 3)
    assert torch.equal(without_noise(schedule, ()).noise_levels, schedule.noise_levels)


def test_guidance_by_hand() -> None:
    unconditional, conditional = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    assert guided(unconditional, conditional, 4.5).tolist() == [10.0, -2.5]
    assert guided(unconditional, conditional, 0.0).tolist() == [1.0, 2.0]
    assert guided(unconditional, conditional, 1.0).tolist() == [3.0, 1.0]
