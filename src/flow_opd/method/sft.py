"""The SFT cold start: images that teachers have drawn, and the batches of a training on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from flow_opd.errors import NonFiniteError
from flow_opd.method.objectives import VelocityMatching, WeightedTerms
from flow_opd.method.rollouts import Repeatable, generate_latents, micro_rows
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import BatchSource, PromptEncoder, VelocityField
from flow_opd.shards import ShardFolder
from flow_opd.types import ImageBatch, Prompt


@dataclass(frozen=True)
class ImageSampling:
    """How images are drawn: by whom, from which noise, along which noise levels."""

    field: VelocityField  # the routed teachers
    encoder: PromptEncoder
    latent_shape: tuple[int, int, int]  # C, H, W
    sigmas: Tensor  # [T + 1], descending; the steps of the ODE
    seeder: Callable[[int, int], Generator]  # (prompt, image of the prompt) -> generator of its noise
    batch_size: int  # images of one forward pass
    device: torch.device | str = "cpu"  # where the field computes
    collective: bool = False  # whether all processes must call the field equally often


class TeacherImages:
    """x0 of each prompt's images, in shards below one folder, for one identity of teachers and prompts.

    Images are numbered: image n of prompt p is row p * images_per_prompt + n. The rows are sorted by task, so
    that a batch needs few teachers, and cut into fixed shards: a shard has the same bytes whichever process
    makes it, in any order. It holds `x0` [N, C, H, W], float32, and in its header its number. A damaged
    shard is made again, and filling goes on where it was killed.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        prompts: Sequence[Prompt],
        *,
        images_per_prompt: int = 1,
        shard_size: int = 256,
    ) -> None:
        """Numbers the images; nothing is read or written yet.

        Args:
            folder: of all samples; these have a sub-folder of their own.
            identity: of everything that decides an image: teachers, prompts, steps, seed.
            prompts: of all tasks.
            images_per_prompt: from different noise.
            shard_size: images of one file; 256 of Stable Diffusion 3.5 at 512 pixels are 67 MB.
        """
        self.folder = folder / identity
        self.prompts = tuple(prompts)
        self.images_per_prompt = images_per_prompt
        self.shard_size = shard_size
        order = sorted(range(len(self)), key=lambda row: self.prompt(row).task)
        self._plan = [order[start : start + shard_size] for start in range(0, len(order), shard_size)]
        self._place = {row: place for place, row in enumerate(order)}
        self._shards = ShardFolder(self.folder)
        self._files: dict[int, Path] = {}  # number of a shard -> where it is

    def __len__(self) -> int:
        return len(self.prompts) * self.images_per_prompt

    def prompt(self, row: int) -> Prompt:
        """Returns the prompt of an image."""
        return self.prompts[row // self.images_per_prompt]

    def x0(self, rows: Sequence[int]) -> Tensor:
        """Returns the clean latents of images, [N, C, H, W], float32; they must have been drawn."""
        places = [divmod(self._place[row], self.shard_size) for row in rows]
        return torch.stack([self._shards.row(self._files[shard], "x0", at) for shard, at in places])

    def fill(
        self,
        sampling: ImageSampling,
        *,
        processes: Processes = ALONE,
        on_images: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Checks what is there, throws away what is damaged, and draws what is missing.

        Args:
            sampling: of the identity that the samples have.
            processes: who shares the work, shard by shard; all see the same folder.
            on_images: called at the start and after each batch with the number of images that there are,
                as far as this process can tell: the others are taken to be as fast.

        Raises:
            NonFiniteError: if a teacher draws something that is not finite; its shard is not written.
        """
        self._shards.remove_damaged(processes)
        self._scan()
        missing = [shard for shard in range(len(self._plan)) if shard not in self._files]
        processes.wait()  # until all have seen the same shards; the first new one would change the shares
        own = [missing[row] for row in processes.rows(len(missing))]
        if sampling.collective:  # who has no shard left makes the last one too: the same bytes, the same name
            own += missing[-1:] * (-(-len(missing) // processes.count) - len(own))
        there, drawn = len(self) - sum(len(self._plan[shard]) for shard in missing), 0
        on_images(there)
        for shard in own:
            parts = []
            for rows in self._batches(shard, sampling):
                # A process in step draws an image for nothing where the others have a batch and it has none.
                parts.append(self._draw(rows or self._plan[shard][:1], sampling)[: len(rows)])
                drawn += len(rows)
                on_images(min(there + drawn * processes.count, len(self)))
            self._shards.write({"x0": torch.cat(parts)}, {"shard": str(shard)})
        processes.wait()
        self._scan()

    def _scan(self) -> None:
        """Finds out which shards are there."""
        self._files = {int(header["shard"]): file for file, header in self._shards.headers()}

    def _batches(self, shard: int, sampling: ImageSampling) -> Iterator[list[int]]:
        """Yields the images of a shard in batches; in step every shard has as many, the last ones empty."""
        rows = self._plan[shard]
        for part in micro_rows(len(self._plan[0] if sampling.collective else rows), sampling.batch_size):
            yield rows[part.start : part.stop]

    def _draw(self, rows: Sequence[int], sampling: ImageSampling) -> Tensor:
        prompts = [self.prompt(row) for row in rows]
        with torch.no_grad():
            conditioning = sampling.encoder.encode_prompts(prompts)
        x0 = generate_latents(
            sampling.field,
            conditioning,
            latent_shape=sampling.latent_shape,
            sigmas=sampling.sigmas,
            generators=[sampling.seeder(*divmod(row, self.images_per_prompt)) for row in rows],
            device=sampling.device,
        ).cpu()
        for prompt, latents in zip(prompts, x0, strict=True):
            if not bool(torch.isfinite(latents).all()):
                raise NonFiniteError(
                    f"the teacher of task {prompt.task!r} draws something that is not finite",
                    value=prompt.text,
                    allowed="finite latents",
                    fix="use bfloat16 or float32 instead of float16, and look at this teacher's adapter",
                )
        return x0


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
    def metrics(self) -> Mapping[str, float]:
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


def sft_cold_start(
    student: VelocityField, encoder: PromptEncoder, samples: TeacherImages, batching: SFTBatching
) -> tuple[BatchSource, WeightedTerms]:
    """Returns the teachers' images, and |v_student - (eps - x0)|^2 at noise levels on the way to them.

    Source: Flow-OPD, arXiv 2605.08063 (cold start by supervised fine-tuning).
    """
    source = ImageBatches(samples, encoder, batching)
    return source, WeightedTerms(student, [(1.0, VelocityMatching())])
