"""Images of the teachers as training batches: the source of the SFT cold start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import PromptEncoder
from flow_opd.rollout.sampler import Repeatable, micro_rows
from flow_opd.rollout.teacher_images import TeacherImages
from flow_opd.types import ImageBatch, Prompt


@dataclass(frozen=True)
class SFTBatching:
    """What a round trains on: which images, under how much noise, and when without their captions."""

    images_of_round: Callable[[int], Sequence[int]]  # rows of the samples, one for each row of the round
    seeder: Callable[[int, int], Generator]  # (round, row) -> generator of that row's draws
    draw_sigmas: Callable[[int, Generator], Tensor]  # (M, generator) -> noise levels, [M]
    caption_dropout: float  # share of rows that are learnt under the empty prompt
    micro_batch_size: int  # images of one forward pass
    processes: Processes = ALONE  # who shares the rows of a round


class ImageBatches:
    """One update per round: images of the teachers, each under a noise and at a noise level of its own."""

    def __init__(self, samples: TeacherImages, encoder: PromptEncoder, batching: SFTBatching) -> None:
        """Takes the images, what encodes their prompts, and what a round trains on."""
        self.samples = samples
        self.encoder = encoder
        self.batching = batching

    @property
    def readings(self) -> Mapping[str, float]:
        """Nothing beyond the objective's own metrics."""
        return {}

    def round(self, index: int) -> Iterator[Repeatable[ImageBatch]]:
        """Yields the one update of round `index`."""
        yield Repeatable(partial(self._batches, index))

    def _batches(self, index: int) -> Iterator[ImageBatch]:
        batching = self.batching
        images = batching.images_of_round(index)
        own = batching.processes.rows(len(images))
        for part in micro_rows(len(own), batching.micro_batch_size):
            rows = own[part.start : part.stop]
            yield self._batch([images[row] for row in rows], [batching.seeder(index, row) for row in rows])

    def _batch(self, images: Sequence[int], draws: Sequence[Generator]) -> ImageBatch:
        """Returns a micro-batch; each row draws in this order: caption kept or not, noise level, noise."""
        prompts = []
        for image, draw in zip(images, draws, strict=True):
            prompt = self.samples.prompt(image)
            dropped = float(torch.rand(1, generator=draw)) < self.batching.caption_dropout
            prompts.append(Prompt("" if dropped else prompt.text, prompt.task))
        sigma = torch.cat([self.batching.draw_sigmas(1, draw) for draw in draws])
        x0 = self.samples.x0(images)
        noise = torch.stack([torch.randn(x0.shape[1:], generator=draw) for draw in draws])
        with torch.no_grad():
            conditioning = self.encoder.encode_prompts(prompts)
        return ImageBatch(x0, noise, sigma, conditioning)
