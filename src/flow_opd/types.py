"""The nouns: frozen dataclasses that travel between folders.

Axes: B trajectories, T steps, M transitions, C H W latent, L D text tokens, P pooled text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A sentence, the task that it belongs to, and what its reward needs to judge an image of it."""

    text: str
    task: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, with the task of each row: routing is a function of the condition."""

    embeds: Tensor  # [B, L, D]
    pooled: Tensor  # [B, P]
    tasks: tuple[str, ...]  # B

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def rows(self, index: Sequence[int] | Tensor) -> Conditioning:
        """Returns the rows at `index`, [N], on the CPU, in that order; an index may occur several times."""
        chosen = torch.as_tensor(index, dtype=torch.long)
        where = chosen.to(self.embeds.device)
        return Conditioning(
            self.embeds[where], self.pooled[where], tuple(self.tasks[i] for i in chosen.tolist())
        )

    def repeated(self, count: int) -> Conditioning:
        """Returns the one row `count` times, without copying it."""
        assert len(self) == 1, len(self)
        return Conditioning(
            self.embeds.expand(count, *self.embeds.shape[1:]),
            self.pooled.expand(count, *self.pooled.shape[1:]),
            self.tasks * count,
        )

    def to(self, device: torch.device | str) -> Conditioning:
        """Returns the conditioning with its tensors on `device`."""
        return Conditioning(self.embeds.to(device), self.pooled.to(device), self.tasks)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Returns all rows of `parts`, one after another."""
        return Conditioning(
            torch.cat([part.embeds for part in parts]),
            torch.cat([part.pooled for part in parts]),
            tuple(task for part in parts for task in part.tasks),
        )


@dataclass(frozen=True)
class Schedule:
    """The noise levels that a trajectory visits, and how much noise each step adds; always on the CPU."""

    sigmas: Tensor  # [T + 1], descending, 1 = noise, ends in 0
    noise_levels: Tensor  # [T], a of each step; 0 = deterministic step

    def __len__(self) -> int:
        return self.noise_levels.shape[0]

    def is_noisy_before(self, index: int) -> bool:
        """Says whether a step before `index` adds noise; until one does, equal starts stay equal."""
        return bool((self.noise_levels[:index] > 0).any())

    def step(self, index: int) -> tuple[float, float, float]:
        """Returns sigma, sigma_next and the noise level of step `index`."""
        sigma, sigma_next = self.sigmas[index : index + 2].tolist()
        return sigma, sigma_next, self.noise_levels.tolist()[index]


@dataclass(frozen=True)
class StepDistribution:
    """The Gaussian of one reverse step."""

    mean: Tensor  # [M, C, H, W]
    std: Tensor  # [M, 1, 1, 1]; 0 = deterministic step


@dataclass(frozen=True)
class Rollout:
    """Trajectories of a behaviour policy, with everything needed to weigh and train on them."""

    prompts: tuple[Prompt, ...]  # B
    conditioning: Conditioning  # B rows
    schedule: Schedule
    latents: Tensor  # [B, T + 1, C, H, W]
    log_prob_mean: Tensor  # [B, T], under the behaviour policy, mean over latent dimensions; 0 where std = 0
    starts: tuple[int, ...] | None = None  # B; rows of one number share start and prompt; None: none do

    @property
    def x0(self) -> Tensor:
        """The clean latents at the end, [B, C, H, W]."""
        return self.latents[:, -1]

    def state_ids(self, step: int) -> tuple[int, ...] | None:
        """Returns numbers, B: rows of one number have the same state at `step`; None: no two are known to."""
        return None if self.schedule.is_noisy_before(step) else self.starts


@dataclass(frozen=True)
class TransitionBatch:
    """Steps of trajectories, as rows. Optional fields are there where an objective needs them."""

    latents: Tensor  # [M, C, H, W]
    sigma: Tensor  # [M]
    sigma_next: Tensor  # [M]
    noise_level: Tensor  # [M]
    conditioning: Conditioning  # M rows
    weight: Tensor | None = None  # [M], weight of the squared velocity error at this state
    order: Tensor | None = None  # [M], in (0, 1): place of the state in a random order of its step's states
    velocity: Tensor | None = None  # [M, C, H, W], the student's with its graph, from the fused walk
    next_latents: Tensor | None = None  # [M, C, H, W], the sampled successor
    behaviour_log_prob: Tensor | None = None  # [M], mean over latent dimensions
    advantage: Tensor | None = None  # [M]
    state_ids: tuple[int, ...] | None = None  # M; rows of one number have the same state and prompt

    def __len__(self) -> int:
        return self.latents.shape[0]


@dataclass(frozen=True)
class ImageBatch:
    """Clean latents with the noise and the noise level drawn for them."""

    x0: Tensor  # [M, C, H, W]
    noise: Tensor  # [M, C, H, W]
    sigma: Tensor  # [M]
    conditioning: Conditioning  # M rows
    velocity: Tensor | None = None

    def __len__(self) -> int:
        return self.x0.shape[0]

    @property
    def latents(self) -> Tensor:
        """The state on the path, x_sigma = (1 - sigma) x0 + sigma noise, [M, C, H, W]."""
        sigma = self.sigma.view(-1, 1, 1, 1)
        return (1 - sigma) * self.x0 + sigma * self.noise


@dataclass(frozen=True)
class LossOutput:
    """A loss as sum and count, so that batches of any sizes add up to exactly the loss of one big batch."""

    total: Tensor  # scalar with graph, summed over rows
    count: int  # rows
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # scalars without graph, sums over the rows


@dataclass(frozen=True)
class RewardScores:
    """Scores of one reward with the scale that they live on and a mask of what could be judged."""

    name: str
    values: Tensor  # [B], float32
    valid: Tensor  # [B], bool; False = this reward does not apply to the prompt
    scale: tuple[float, float]  # lowest and highest possible value
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # further values [B], e.g. "strict"


@dataclass(frozen=True)
class RewardTable:
    """Scores of the rewards of a run for the same images, and how much each reward counts."""

    scores: Mapping[str, RewardScores]  # every reward of the run, also where it judges none of the images
    weights: Mapping[str, float]  # of the same rewards
