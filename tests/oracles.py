"""What tests compare with or start from: formulas of papers, short ways that the package does not need."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from flow_opd.flow.dynamics import diffusion
from flow_opd.flow.path import make_schedule
from flow_opd.prompts.jsonl import read_lines
from flow_opd.types import Prompt, Schedule


def sde_kl_weight(sigma: Tensor, sigma_next: Tensor, noise_level: Tensor) -> Tensor:
    """Returns w(sigma) with transition_kl = w |v_student - v_target|^2 for the Flow-GRPO SDE, [M].

        w = (-dsigma) / 2 (g (1 - sigma) / (2 sigma) + 1 / g)^2

    Source: Flow-OPD, arXiv 2605.08063.
    """
    g = diffusion(sigma, sigma_next, noise_level)
    return (sigma - sigma_next) / 2 * (g * (1 - sigma) / (2 * sigma) + 1 / g) ** 2


def ode_schedule(sigmas: Tensor) -> Schedule:
    """Returns the grid without noise, on which every dynamics is the ODE."""
    return make_schedule(sigmas, noise_level=0.0, stochastic_steps=(0, 0))


def read_prompts(
    path: str | Path, *, task: str | None = None, limit: int | None = None, text_in_quotes: bool = False
) -> list[Prompt]:
    """Returns the prompts of a file without their places."""
    return [prompt for _, prompt in read_lines(path, task=task, text_in_quotes=text_in_quotes)[:limit]]
