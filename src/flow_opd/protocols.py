"""The verbs: what the parts promise each other. Structural contracts without bodies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flow_opd.types import (
    Conditioning,
    ImageBatch,
    LossOutput,
    Prompt,
    RewardScores,
    RewardTable,
    StepDistribution,
    TransitionBatch,
)


class VelocityField(Protocol):
    """v(x_sigma, sigma, c): a policy, a teacher, a routed mixture of teachers, an anchor."""

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns eps - x0 as the field sees it, [M, C, H, W], float32, after guidance.

        Args:
            latents: x_sigma, [M, C, H, W].
            sigma: noise levels in [0, 1], [M].
            conditioning: M rows.
        """
        ...


class PromptEncoder(Protocol):
    """Turns prompts into what a velocity field is conditioned on: a base, or a cache of its encoders."""

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns the conditioning of the prompts, B rows, tasks included."""
        ...


class Backbone(VelocityField, PromptEncoder, Protocol):
    """A pretrained text-to-image model behind the border: latents, sigmas and velocities only."""

    latent_shape: tuple[int, int, int]  # C, H, W
    device: torch.device  # where the networks compute, and latents belong

    def encode_images(self, images: Tensor) -> Tensor:
        """Returns x0, [B, C, H, W], of images [B, 3, height, width] in [0, 1]."""
        ...

    def decode_latents(self, x0: Tensor) -> Tensor:
        """Returns images in [0, 1], [B, 3, height, width], of x0 [B, C, H, W]."""
        ...

    def sigmas(self, num_steps: int) -> Tensor:
        """Returns the model's own grid of noise levels, [num_steps + 1], from 1 down to 0."""
        ...


class LoadedBackbone(Backbone, Protocol):
    """A backbone with its parts in memory: it carries adapters, and lets go of what has done its work."""

    image_size: int  # pixels, height and width
    transformer: nn.Module  # the network; an adapter bank puts its adapters around it

    def encoder_identity(self) -> str:
        """Returns a hash of all that decides what `encode_prompts` gives; raises once encoders are freed."""
        ...

    def free_encoders(self) -> None:
        """Drops the text encoders from memory, once all prompts are encoded; `encode_prompts` then raises."""
        ...

    def free_vae(self) -> None:
        """Drops the VAE from memory, where no picture will be encoded or decoded any more."""
        ...


class Dynamics(Protocol):
    """One reverse step: ODE, the Flow-GRPO SDE, CPS."""

    def __call__(
        self, latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: Tensor
    ) -> StepDistribution:
        """Returns the Gaussian of x at sigma_next, given x at sigma; all noise arguments are [M]."""
        ...


class Router(Protocol):
    """alpha_k(c): how much of each teacher a prompt gets."""

    teachers: tuple[str, ...]  # K

    def weights(self, conditioning: Conditioning) -> Tensor:
        """Returns alpha, [M, K], rows summing to 1, on the CPU."""
        ...


class Reward(Protocol):
    """Scores images; a reward that cannot do its work raises `RewardError`."""

    name: str
    scale: tuple[float, float]

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        """Returns one score for each image.

        Args:
            images: [B, 3, height, width], float, in [0, 1].
            prompts: B prompts whose metadata say what is judged.
        """
        ...


class BatchSource(Protocol):
    """Where batches come from: images, rollouts, or the fused on-policy walk."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the source itself measured in the current round, e.g. the mean reward; goes to the log."""
        ...

    def round(self, index: int) -> Iterator[Iterable[Any]]:
        """Yields the updates of round `index`, each an iterable of micro-batches.

        Everything random is drawn from (seed, index): a resumed run sees the same batches, and so does who
        goes through an update again while the weights are the same.
        """
        ...


class Objective(Protocol):
    """What is minimised over a micro-batch."""

    def __call__(self, batch: Any) -> LossOutput:
        """Returns the loss summed over the rows of `batch`, with the number of rows."""
        ...


class Term(Protocol):
    """A part of an objective: a loss on the student's velocity at the points of a batch."""

    name: str

    def __call__(self, velocity: Tensor, batch: TransitionBatch | ImageBatch) -> LossOutput:
        """Returns the term's loss for the student's velocity [M, C, H, W], which carries the graph."""
        ...


class Scorer(Protocol):
    """The rewards of a run."""

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardTable:
        """Returns all scores of images [B, 3, height, width] in [0, 1], and the rewards' weights."""
        ...


class Callback(Protocol):
    """Watches a training; it may write files or draw, but never changes weights."""

    def on_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after each optimizer step."""
        ...

    def on_resume(self, step: int) -> None:
        """Called when the training has gone back to a checkpoint of `step` steps."""
        ...

    def on_end(self) -> None:
        """Called once when the training has finished."""
        ...
