"""Seeded images of held-out prompts, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_opd.protocols import Backbone, Reward, VelocityField
from flow_opd.rollout.sampler import generate_latents, micro_rows
from flow_opd.types import Prompt


@dataclass(frozen=True)
class Sheet:
    """What is drawn: each prompt once from each seed."""

    domain: str
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]

    def shots(self) -> list[tuple[int, int]]:
        """Returns (prompt index, seed) of every image, prompts first."""
        return [(index, seed) for index in range(len(self.prompts)) for seed in self.seeds]


class Camera:
    """Draws and scores images; the noise of an image depends on its domain, prompt and seed alone."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        sigmas: Tensor,
        batch_size: int,
        seeder: Callable[[str, int, int], torch.Generator],
    ) -> None:
        """Sets up the sampler.

        Args:
            backbone: encodes prompts and decodes images.
            sigmas: the ODE's grid, [T + 1].
            batch_size: images drawn at once.
            seeder: (domain, prompt index, seed) -> generator of that image's noise.
        """
        self.backbone = backbone
        self.sigmas = sigmas
        self.batch_size = batch_size
        self.seeder = seeder

    @torch.no_grad()
    def draw(self, field: VelocityField, sheet: Sheet, shots: Sequence[tuple[int, int]]) -> Tensor:
        """Returns images in [0, 1], [B, 3, height, width], of the given shots of a sheet."""
        latents = generate_latents(
            field,
            self.backbone.encode_prompts([sheet.prompts[index] for index, _ in shots]),
            latent_shape=self.backbone.latent_shape,
            sigmas=self.sigmas,
            generators=[self.seeder(sheet.domain, index, seed) for index, seed in shots],
        )
        return self.backbone.decode_latents(latents)

    def score(
        self,
        field: VelocityField,
        sheet: Sheet,
        rewards: Sequence[Reward],
        *,
        on_batch: Callable[[int], None],
    ) -> dict[str, list[float | None]]:
        """Returns metric -> scores of all shots of the sheet, None where a reward does not apply.

        Args:
            field: the policy.
            sheet: what is drawn.
            rewards: each gives its value under its own name, and its parts under "name_part".
            on_batch: called with the number of images after each batch.
        """
        table: dict[str, list[float | None]] = {}
        shots = sheet.shots()
        for rows in micro_rows(len(shots), self.batch_size):
            part = [shots[row] for row in rows]
            images = self.draw(field, sheet, part)
            prompts = [sheet.prompts[index] for index, _ in part]
            for reward in rewards:
                scores = reward.score(images, prompts)
                readings = {reward.name: scores.values} | {
                    f"{reward.name}_{name}": values for name, values in scores.parts.items()
                }
                for name, values in readings.items():
                    judged = zip(values.tolist(), scores.valid.tolist(), strict=True)
                    table.setdefault(name, []).extend(value if valid else None for value, valid in judged)
            on_batch(len(part))
        return table
