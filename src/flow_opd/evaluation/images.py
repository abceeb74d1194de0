"""Seeded images of held-out prompts, and their scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flow_opd.evaluation.intervals import Scores
from flow_opd.evaluation.metrics import REPORTED_AS
from flow_opd.evaluation.results import Metric
from flow_opd.method.rollouts import generate_latents, micro_rows
from flow_opd.processes import ALONE, Processes
from flow_opd.prompts.overlap import identity
from flow_opd.protocols import Backbone, PromptEncoder, Reward, VelocityField
from flow_opd.rewards.table import check_numbers
from flow_opd.types import Prompt

ImageScores = dict[str, list[float | None]]
"""What a reward reports -> its value for each image of a set, None where the reward does not apply."""


class ImageKey(NamedTuple):
    """Which image of a set."""

    prompt: int  # its index in the set
    seed: int


@dataclass(frozen=True)
class EvaluationSet:
    """What is drawn: each prompt once from each seed."""

    domain: str
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]

    def image_keys(self) -> list[ImageKey]:
        """Returns every image, prompts first."""
        return [ImageKey(index, seed) for index in range(len(self.prompts)) for seed in self.seeds]

    def first_image_keys(self, count: int) -> list[ImageKey]:
        """Returns one image of each of the first `count` prompts, or of all if they are fewer."""
        return [ImageKey(index, self.seeds[0]) for index in range(min(count, len(self.prompts)))]

    def scores(self, values: Sequence[float | None], *, by_tag: bool = False) -> Scores:
        """Returns the scores of all images; lines that ask for the same are one prompt.

        Args:
            values: one for each image, None where the reward does not apply.
            by_tag: whether the mean is that over the tags of the prompts.
        """
        keys = self.image_keys()
        asked = [self.prompts[key.prompt] for key in keys]
        return Scores.of(
            [f"{key.prompt}:{prompt.text}" for key, prompt in zip(keys, asked, strict=True)],
            [key.seed for key in keys],
            [math.nan if value is None else value for value in values],
            [value is not None for value in values],
            prompts=[identity(prompt) for prompt in asked],
            tags=[str(prompt.metadata.get("tag", "")) for prompt in asked] if by_tag else None,
        )

    def scores_by_metric(self, values: ImageScores, metrics: Sequence[Metric]) -> dict[str, Scores]:
        """Returns metric -> scores of all images, for those of the metrics that a reward reported."""
        names = {metric.name: REPORTED_AS.get(metric.name, metric.name) for metric in metrics}
        return {
            metric.name: self.scores(values[names[metric.name]], by_tag=metric.by_tag)
            for metric in metrics
            if names[metric.name] in values
        }


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
    def draw(self, field: VelocityField, domain_set: EvaluationSet, keys: Sequence[ImageKey]) -> Tensor:
        """Returns B images of a set, [B, 3, height, width], in [0, 1], on the CPU."""
        latents = generate_latents(
            field,
            self.encoder.encode_prompts([domain_set.prompts[key.prompt] for key in keys]),
            latent_shape=self.backbone.latent_shape,
            sigmas=self.sigmas,
            generators=[self.seeder(domain_set.domain, key.prompt, key.seed) for key in keys],
            device=self.backbone.device,
        )
        return self.backbone.decode_latents(latents).cpu()

    def score(
        self,
        field: VelocityField,
        domain_set: EvaluationSet,
        rewards: Sequence[Reward],
        *,
        on_batch: Callable[[Sequence[ImageKey], Tensor], None] | None = None,
    ) -> ImageScores:
        """Returns what the rewards report of all images of the set.

        Args:
            field: the policy.
            domain_set: what is drawn.
            rewards: each gives its value under its own name, and its parts under "name_part".
            on_batch: called after each batch with what was drawn and the images, [B, 3, height, width].
        """
        keys = domain_set.image_keys()
        # A process without a share draws the first image for nothing: it has to know what is measured.
        own = [keys[row] for row in self.processes.rows(len(keys))] or keys[:1]
        table: dict[str, list[float]] = {}
        for rows in micro_rows(len(own), self.batch_size):
            batch = [own[row] for row in rows]
            images = self.draw(field, domain_set, batch)
            prompts = [domain_set.prompts[key.prompt] for key in batch]
            for reward in rewards:
                scores = reward.score(images, prompts)
                check_numbers(scores, reward, prompts)
                reported = {reward.name: scores.values} | {
                    f"{reward.name}_{part}": values for part, values in scores.parts.items()
                }
                for name, values in reported.items():
                    judged = torch.where(scores.valid, values, torch.nan)
                    table.setdefault(name, []).extend(judged.tolist())
            if on_batch is not None:
                on_batch(batch, images)
        return {name: self._everybodys(values, len(keys)) for name, values in table.items()}

    def _everybodys(self, own: list[float], total: int) -> list[float | None]:
        """Returns the scores of all images from this process's own, None for NaN."""
        share = len(self.processes.rows(total))
        values = self.processes.gather_rows(torch.tensor(own[:share], dtype=torch.float64), total)
        return [None if math.isnan(value) else value for value in values.tolist()]


def score_policies(
    sampler: ImageSampler,
    policies: Mapping[str, AbstractContextManager[VelocityField]],
    sets: Mapping[str, Sequence[EvaluationSet]],
    rewards: Sequence[Reward],
    *,
    kept: Callable[[str, EvaluationSet, Callable[[], ImageScores]], ImageScores] | None = None,
    on_batch: Callable[[str, EvaluationSet, Sequence[ImageKey], Tensor], None] | None = None,
) -> dict[str, dict[str, ImageScores]]:
    """Returns row -> domain -> what the rewards report of the images of a policy, one row after the other.

    Args:
        sampler: draws.
        policies: row -> context that yields its policy and is left when the row has been scored.
        sets: row -> what is drawn of it.
        rewards: that judge every image.
        kept: (row, set, work) -> what has been reported before, or else what `work` returns.
        on_batch: called after each batch with row, set, what was drawn and the images, [B, 3, height, width].
    """
    found: dict[str, dict[str, ImageScores]] = {}
    for row, context in policies.items():
        with context as policy:
            for one in sets[row]:
                seen = None if on_batch is None else partial(on_batch, row, one)
                work = partial(sampler.score, policy, one, rewards, on_batch=seen)
                found.setdefault(row, {})[one.domain] = work() if kept is None else kept(row, one, work)
    return found


class Album:
    """The images of the first prompts of each domain, kept while they are scored.

    What was not scored here is drawn when it is needed: another process's share, what was finished
    before, a domain that a row is not evaluated on. The batch that it is drawn in may change its
    last bits.
    """

    def __init__(self, sampler: ImageSampler, prompts: int) -> None:
        """Takes what draws, and how many prompts of each domain are shown."""
        self.sampler = sampler
        self.prompts = prompts
        self._kept: dict[tuple[str, str, ImageKey], Tensor] = {}

    def keep(self, row: str, domain_set: EvaluationSet, keys: Sequence[ImageKey], images: Tensor) -> None:
        """Keeps those of the images [B, 3, height, width] of a policy that will be shown."""
        wanted = set(domain_set.first_image_keys(self.prompts))
        for key, image in zip(keys, images, strict=True):
            if key in wanted:
                self._kept[row, domain_set.domain, key] = image.clone()

    def images(self, row: str, field: VelocityField, domain_set: EvaluationSet) -> Tensor:
        """Returns the images of a policy in a domain that are shown, [N, 3, height, width]."""
        keys = domain_set.first_image_keys(self.prompts)
        missing = [key for key in keys if (row, domain_set.domain, key) not in self._kept]
        if missing:
            self.keep(row, domain_set, missing, self.sampler.draw(field, domain_set, missing))
        return torch.stack([self._kept[row, domain_set.domain, key] for key in keys])
