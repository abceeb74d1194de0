"""Seeded images of held-out prompts, and their scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_opd.method.rollouts import generate_latents, micro_rows
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import Backbone, PromptEncoder, Reward, VelocityField
from flow_opd.types import Prompt

Shot = tuple[int, int]  # index of the prompt, and the seed


@dataclass(frozen=True)
class EvaluationSet:
    """What is drawn: each prompt once from each seed."""

    domain: str
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]

    def shots(self) -> list[Shot]:
        """Returns every image, prompts first."""
        return [(index, seed) for index in range(len(self.prompts)) for seed in self.seeds]

    def first_shots(self, count: int) -> list[Shot]:
        """Returns one image of each of the first `count` prompts, or of all if they are fewer."""
        return [(index, self.seeds[0]) for index in range(min(count, len(self.prompts)))]


class ImageSampler:
    """Draws and scores images; the noise of an image depends on its domain, prompt and seed alone."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        encoder: PromptEncoder,
        sigmas: Tensor,
        batch_size: int,
        seeder: Callable[[str, int, int], torch.Generator],
        processes: Processes = ALONE,
    ) -> None:
        """Sets up the sampler.

        Args:
            backbone: decodes images.
            encoder: encodes prompts.
            sigmas: the ODE's grid, [T + 1].
            batch_size: images drawn at once.
            seeder: (domain, prompt index, seed) -> generator of that image's noise.
            processes: who shares the images of a set.
        """
        self.backbone = backbone
        self.encoder = encoder
        self.sigmas = sigmas
        self.batch_size = batch_size
        self.seeder = seeder
        self.processes = processes

    @torch.no_grad()
    def draw(self, field: VelocityField, domain_set: EvaluationSet, shots: Sequence[Shot]) -> Tensor:
        """Returns the images of (prompt, seed) pairs, [B, 3, height, width], in [0, 1], on the CPU."""
        latents = generate_latents(
            field,
            self.encoder.encode_prompts([domain_set.prompts[index] for index, _ in shots]),
            latent_shape=self.backbone.latent_shape,
            sigmas=self.sigmas,
            generators=[self.seeder(domain_set.domain, index, seed) for index, seed in shots],
            device=self.backbone.device,
        )
        return self.backbone.decode_latents(latents).cpu()

    def score(
        self,
        field: VelocityField,
        domain_set: EvaluationSet,
        rewards: Sequence[Reward],
        *,
        on_batch: Callable[[Sequence[Shot], Tensor], None],
    ) -> dict[str, list[float | None]]:
        """Returns metric -> scores of all images of the set, None where a reward does not apply.

        Args:
            field: the policy.
            domain_set: what is drawn.
            rewards: each gives its value under its own name, and its parts under "name_part".
            on_batch: called after each batch with its (prompt, seed) pairs and images, [B, 3, height, width].
        """
        shots = domain_set.shots()
        # A process without a share draws the first image for nothing: it has to know what is measured.
        own = [shots[row] for row in self.processes.rows(len(shots))] or shots[:1]
        table: dict[str, list[float]] = {}
        for rows in micro_rows(len(own), self.batch_size):
            part = [own[row] for row in rows]
            images = self.draw(field, domain_set, part)
            prompts = [domain_set.prompts[index] for index, _ in part]
            for reward in rewards:
                scores = reward.score(images, prompts)
                readings = {reward.name: scores.values} | {
                    f"{reward.name}_{name}": values for name, values in scores.parts.items()
                }
                for name, values in readings.items():
                    judged = torch.where(scores.valid, values, torch.nan)
                    table.setdefault(name, []).extend(judged.tolist())
            on_batch(part, images)
        return {name: self._everybodys(values, len(shots)) for name, values in table.items()}

    def _everybodys(self, own: list[float], total: int) -> list[float | None]:
        """Returns the scores of all images from this process's own, None for NaN."""
        share = len(self.processes.rows(total))
        values = self.processes.gather_rows(torch.tensor(own[:share], dtype=torch.float64), total)
        return [None if math.isnan(value) else value for value in values.tolist()]


class Album:
    """The images of the first prompts of each domain, kept while they are scored.

    What was not scored here is drawn when it is needed: another process's share, a table entry that was
    finished before, a domain that a row is not evaluated on. The batch that it is drawn in may change its
    last bits.
    """

    def __init__(self, sampler: ImageSampler, prompts: int) -> None:
        """Takes what draws, and how many prompts of each domain are shown."""
        self.sampler = sampler
        self.prompts = prompts
        self._kept: dict[tuple[str, str, Shot], Tensor] = {}

    def keep(self, row: str, domain_set: EvaluationSet, shots: Sequence[Shot], images: Tensor) -> None:
        """Keeps those of the images [B, 3, height, width] of a policy that will be shown."""
        wanted = set(domain_set.first_shots(self.prompts))
        for shot, image in zip(shots, images, strict=True):
            if shot in wanted:
                self._kept[row, domain_set.domain, shot] = image.clone()

    def images(self, row: str, field: VelocityField, domain_set: EvaluationSet) -> Tensor:
        """Returns the images of a policy in a domain that are shown, [N, 3, height, width]."""
        shots = domain_set.first_shots(self.prompts)
        missing = [shot for shot in shots if (row, domain_set.domain, shot) not in self._kept]
        if missing:
            self.keep(row, domain_set, missing, self.sampler.draw(field, domain_set, missing))
        return torch.stack([self._kept[row, domain_set.domain, shot] for shot in shots])
