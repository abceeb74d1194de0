"""A walk by CPS that would train one step alone is refused, and the message names the window to set."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from errors import refused
from flow_opd.backbones.pipeline import grid
from flow_opd.config.sampling import DynamicsSettings, SamplingSettings
from flow_opd.errors import ConfigError
from flow_opd.method.walk import refuse_tiny_levels


def sd3_grid(steps: int = 10) -> Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    sigmas: Tensor = scheduler.sigmas
    return sigmas


def sampling(**changes: Any) -> SamplingSettings:
    return SamplingSettings.model_validate({"dynamics": "cps", **changes})


def shares_of_kl(dynamics: str, sigmas: Tensor) -> Tensor:
    """Returns the share of each step but the last in the transition KL of one squared velocity gap."""
    point, weights = torch.zeros(1, 1, 1, 1), []
    step = DynamicsSettings.of(dynamics).build()
    for now, after in itertools.pairwise(sigmas[:-1]):
        grid = now.view(1), after.view(1), torch.tensor([0.7])
        still, moved = (step(point, velocity, *grid) for velocity in (point, point + 1))
        weights.append((moved.mean - still.mean) ** 2 / (2 * still.std**2))
    return torch.cat(weights).flatten() / torch.cat(weights).sum()


def test_one_step_of_cps_has_nearly_all_of_the_kl_and_no_step_of_the_sde() -> None:
    cps, sde = (shares_of_kl(dynamics, sd3_grid()) for dynamics in ("cps", "sde"))
    assert cps[8].item() == pytest.approx(0.9985, abs=1e-4)
    assert sde[8].item() == pytest.approx(0.641, abs=1e-3)


def test_it_is_refused_with_the_window_to_set() -> None:
    with refused(ConfigError, value=0.0089, names=["stochastic_steps"]):
        refuse_tiny_levels(sd3_grid(), sampling())
    with refused(ConfigError, value=0.0089):
        refuse_tiny_levels(sd3_grid(), sampling(stochastic_steps=(8, 8)))


@pytest.mark.parametrize(
    ("sigmas", "changes"),
    [
        (sd3_grid(), {"stochastic_steps": (0, 7)}),
        (sd3_grid(), {"dynamics": "sde"}),
        (sd3_grid(), {"dynamics": "ode"}),
    ],
)
def test_what_has_no_such_step_passes(sigmas: Tensor, changes: dict[str, Any]) -> None:
    refuse_tiny_levels(sigmas, sampling(**changes))


def test_flux_needs_no_window() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    sigmas = grid(scheduler, 10, tokens=1024, given=torch.linspace(1.0, 0.1, 10).tolist())  # 512 pixels
    assert sigmas[-3:].tolist() == pytest.approx([0.319, 0.173, 0.0], abs=1e-3)
    refuse_tiny_levels(sigmas, sampling())
