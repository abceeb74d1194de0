"""Tiny worlds for tests: a real SD3 pipeline of the smallest size, and flows with a known answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from flow_opd.adapters.bank import AdapterBank
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import CheckpointSettings, EMASettings, LoraSettings, OptimizerSettings
from flow_opd.config.sampling import DynamicsSettings
from flow_opd.flow.advantages import advantages_of_the_sum, sum_of_the_advantages
from flow_opd.flow.path import make_schedule, shifted_uniform_sigmas
from flow_opd.method.corrections import sampled_log_ratio
from flow_opd.method.groups import GroupSampling
from flow_opd.method.grpo import flow_grpo
from flow_opd.method.objectives import OPDPolicies, Target, VelocityMatching, WeightedTerms
from flow_opd.method.opd import direct_opd, policy_gradient_opd
from flow_opd.method.policy import Policy
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.routing import HardRouter, RoutedTeachers, TeacherField
from flow_opd.method.sft import ImageSampling, SFTBatching, TeacherImages, sft_cold_start
from flow_opd.method.walk import Walks
from flow_opd.miniature.vocabulary import build_tokenizer
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import BatchSource, Objective
from flow_opd.rewards.table import TrainingReward, TrainingRewards
from flow_opd.seeding import generator
from flow_opd.training.trainer import LoopSettings, Trainer
from flow_opd.types import Conditioning, ImageBatch, Prompt, RewardScores

WORDS = ("a", "red", "blue", "circle", "square", "sign", "that", "says")
SHAPE, SIGN = "shapes", "signs"
PROMPTS = (
    Prompt("a red circle", SHAPE),
    Prompt("a sign that says CAB", SIGN),
    Prompt("a blue square", SHAPE),
    Prompt("a sign that says DOG", SIGN),
)


def _text_encoder(vocabulary: int, length: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=16,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
        initializer_factor=20.0,  # loud enough that prompts matter
    )
    return CLIPTextModelWithProjection(config)


def new_tiny_pipeline(*, seed: int = 0, shift: float = 3.0) -> StableDiffusion3Pipeline:
    """Returns an untrained SD3 pipeline: 2 layers, 2 heads of 8, 8x8 pixels, latents [4, 4, 4]."""
    tokenizers = [build_tokenizer(WORDS, max_length=10) for _ in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=4,
            qk_norm="rms_norm",
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            sample_size=8,
            scaling_factor=1.5,
            shift_factor=0.06,
        )
        encoders = [_text_encoder(len(tokenizers[0]), 10) for _ in range(2)]
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return pipe


def fill(bank: AdapterBank, name: str, seed: int, *, size: float = 0.2) -> None:
    """Adds an adapter that changes the velocity: neither factor is zero."""
    bank.add(name, LoraSettings(rank=2, alpha=4.0), seed)
    draw = torch.Generator().manual_seed(seed)
    bank.load_state(
        name,
        {key: size * torch.randn(value.shape, generator=draw) for key, value in bank.state(name).items()},
    )


class Tiny:
    """One tiny base with a trained student, two teachers and an anchor, ready for any algorithm."""

    collective = False

    def __init__(self, *, collective: bool = False) -> None:
        self.collective = collective
        self.backbone = SD3Backbone(new_tiny_pipeline(), max_sequence_length=0)
        self.bank = AdapterBank(self.backbone)
        for seed, name in enumerate(("student", "teacher-shapes", "teacher-signs", "anchor"), start=1):
            fill(self.bank, name, seed)
        self.bank.train("student")

    def policy(self, adapter: str | None, guidance_scale: float = 1.0) -> Policy:
        return Policy(
            self.backbone,
            adapters=self.bank,
            adapter=adapter,
            guidance_scale=guidance_scale,
            collective=self.collective,
        )

    @property
    def student(self) -> Policy:
        return self.policy("student")

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return self.bank.parameters("student")

    def teachers(self) -> RoutedTeachers:
        fields = {
            "shapes": TeacherField(self.policy("teacher-shapes")),
            "signs": TeacherField(self.policy("teacher-signs", 2.0)),
        }
        return RoutedTeachers(fields, HardRouter({SHAPE: "shapes", SIGN: "signs"}))

    def policies(self, anchor_weight: float = 0.1, anchor_share: float = 1.0) -> OPDPolicies:
        anchor = Target("anchor_gap", self.policy("anchor"), anchor_weight, anchor_share)
        return OPDPolicies(self.backbone, self.student, self.teachers(), anchor)

    def walks(
        self,
        *,
        prompts: int = 4,
        num_steps: int = 3,
        micro_batch_size: int = 8,
        dynamics: str = "sde",
        window: tuple[int, int] | None = None,
        seed: int = 0,
        processes: Processes = ALONE,
    ) -> Walks:
        first, stop = window or (0, num_steps - 1)
        return Walks(
            encoder=self.backbone,
            prompts_of_round=lambda index: [PROMPTS[(index + i) % len(PROMPTS)] for i in range(prompts)],
            seeder=lambda index, row: generator(seed, "walk", index, row),
            order_seeder=lambda index, step: generator(seed, "ranks", index, step),
            schedule=make_schedule(
                self.backbone.sigmas(num_steps), noise_level=0.7, stochastic_steps=(first, stop)
            ),
            dynamics=DynamicsSettings.of(dynamics).build(),
            micro_batch_size=micro_batch_size,
            processes=processes,
        )

    def drawing(self, *, num_steps: int = 3, batch_size: int = 3) -> ImageSampling:
        """Returns how the routed teachers draw images."""
        return ImageSampling(
            field=self.teachers(),
            encoder=self.backbone,
            latent_shape=self.backbone.latent_shape,
            sigmas=self.backbone.sigmas(num_steps),
            seeder=lambda prompt, image: generator(0, "sample", prompt, image),
            batch_size=batch_size,
            collective=self.collective,
        )

    def sft(self, folder: Path, micro_batch_size: int, processes: Processes) -> tuple[BatchSource, Objective]:
        """Returns source and objective of the SFT cold start, its images drawn into `folder`."""
        samples = TeacherImages(folder, "tiny", PROMPTS, images_per_prompt=3, shard_size=5)
        samples.fill(self.drawing(), processes=processes)
        of_images = [prompt for prompt in PROMPTS for _ in range(3)]
        batching = SFTBatching(
            images_of_round=PromptRounds(of_images, 0, 8).rows,
            seeder=lambda index, row: generator(0, "sft", index, row),
            draw_sigmas=lambda count, draw: shifted_uniform_sigmas(count, shift=3.0, generator=draw),
            caption_dropout=0.2,
            micro_batch_size=micro_batch_size,
            processes=processes,
        )
        return sft_cold_start(self.student, self.backbone, samples, batching)

    def algorithm(
        self,
        name: str,
        *,
        micro_batch_size: int = 8,
        processes: Processes = ALONE,
        folder: Path | None = None,
    ) -> tuple[BatchSource, Objective]:
        """Returns source and objective of one of `ALGORITHMS`; only "sft" keeps files, below `folder`."""
        if name == "sft":
            assert folder is not None
            return self.sft(folder / "samples", micro_batch_size, processes)
        prompts = 2 if name.startswith("grpo") else 8
        walks = self.walks(micro_batch_size=micro_batch_size, prompts=prompts, processes=processes)
        if name == "velocity-matching":
            objective = WeightedTerms(self.student, [(1.0, VelocityMatching())])
            return TinyImages(self.backbone, micro_batch_size), objective
        if name in ("grpo", "grpo-mix"):
            mixed = name == "grpo-mix"
            return flow_grpo(
                self.student,
                self.policy(None),
                self.backbone,
                walks,
                MIXED if mixed else REDNESS,
                GroupSampling(
                    group_size=4,
                    steps_of_round=lambda index: range(2),
                    advantages=sum_of_the_advantages if mixed else advantages_of_the_sum,
                    updates_per_round=2,
                ),
                clip_range=0.05,
                kl_weight=0.05,
            )
        if name == "opd":
            return direct_opd(self.policies(), walks)
        assert name == "opd-log-ratio", name
        return policy_gradient_opd(
            self.policies(),
            walks,
            correction=sampled_log_ratio,
            updates_per_round=1,
            clip_range=0.05,
            advantage_clip=1e3,
        )


UPDATES_PER_ROUND = {"velocity-matching": 1, "sft": 1, "grpo": 2, "grpo-mix": 2, "opd": 1, "opd-log-ratio": 1}
ALGORITHMS = tuple(UPDATES_PER_ROUND)


def tiny_trainer(
    tiny: Tiny,
    algorithm: str,
    folder: Path,
    *,
    rounds: int,
    identity: str = "tiny",
    micro_batch_size: int = 8,
    processes: Processes = ALONE,
) -> Trainer:
    """Returns the training of an algorithm with everything that a resume must restore, saved every round."""
    source, objective = tiny.algorithm(
        algorithm, micro_batch_size=micro_batch_size, processes=processes, folder=folder
    )
    return Trainer(
        parameters=tiny.parameters,
        source=source,
        objective=objective,
        settings=LoopSettings(
            rounds=rounds,
            updates_per_round=UPDATES_PER_ROUND[algorithm],
            optimizer=OptimizerSettings(learning_rate=1e-3, warmup_steps=2, decay="cosine"),
            ema=EMASettings(decay=0.9, every=2),
            checkpoint=CheckpointSettings(every_minutes=1e-9),
        ),
        folder=folder,
        identity=identity,
        processes=processes,
    )


@dataclass(frozen=True)
class TinyImages:
    """Eight made-up clean latents a round, drawn from the round alone, in micro-batches."""

    backbone: SD3Backbone
    micro_batch_size: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def round(self, index: int) -> Iterator[list[ImageBatch]]:
        draw = generator(0, "images", index)
        shape = (8, *self.backbone.latent_shape)
        x0, noise = torch.randn(shape, generator=draw) * 0.5 + 0.3, torch.randn(shape, generator=draw)
        sigma = torch.rand(8, generator=draw)
        conditioning = self.backbone.encode_prompts([PROMPTS[i % len(PROMPTS)] for i in range(8)])
        rows = [range(s, min(8, s + self.micro_batch_size)) for s in range(0, 8, self.micro_batch_size)]
        yield [ImageBatch(x0[r], noise[r], sigma[r], conditioning.rows(list(r))) for r in map(list, rows)]


class Tint:
    """A reward anyone can check: the mean of one channel minus that of another."""

    scale = (-1.0, 1.0)

    def __init__(self, name: str, more: int, less: int) -> None:
        self.name, self.more, self.less = name, more, less

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        values = images[:, self.more].mean((1, 2)) - images[:, self.less].mean((1, 2))
        return RewardScores(self.name, values, torch.ones(len(prompts), dtype=torch.bool), self.scale)


REDNESS = TrainingRewards([TrainingReward(Tint("red", 0, 2))])
MIXED = TrainingRewards(
    [
        TrainingReward(Tint("red", 0, 2), 1.0, (SHAPE,)),
        TrainingReward(Tint("green", 1, 0), 0.5),
        TrainingReward(Tint("blue", 2, 1), 2.0, (SIGN,)),
    ]
)


@dataclass(frozen=True)
class GivenBatches:
    """A source that hands out the same micro-batches in every round."""

    batches: Sequence[Any]
    metrics: Mapping[str, float] = field(default_factory=dict)

    def round(self, index: int) -> Iterator[Iterable[Any]]:
        yield self.batches


class Recorder:
    """Keeps what callbacks are told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.ended = 0

    def on_update(self, step: int, metrics: Mapping[str, float]) -> None:
        self.lines.append({"step": step, **metrics})

    def on_resume(self, step: int) -> None:
        self.lines = [line for line in self.lines if line["step"] <= step]

    def on_end(self) -> None:
        self.ended += 1


@dataclass(frozen=True)
class GaussianFlow:
    """The exact velocity for data N(mean, std^2 I): x_sigma ~ N((1-s) mean, (1-s)^2 std^2 + s^2)."""

    mean: float
    std: float

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        s = sigma.view(-1, 1, 1, 1)
        slope = (s - (1 - s) * self.std**2) / self.marginal_variance(s)  # cov(eps - x0, x) / var(x)
        return -self.mean + slope * (latents - (1 - s) * self.mean)

    def marginal_mean(self, sigma: float) -> float:
        return (1 - sigma) * self.mean

    def marginal_variance(self, sigma: Any) -> Any:
        return (1 - sigma) ** 2 * self.std**2 + sigma**2


class SmallNet(nn.Module):
    """A velocity field on latents [2, 2, 2] from a small network of x and sigma."""

    def __init__(self, seed: int, *, width: int = 16) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(9, width), nn.Tanh(), nn.Linear(width, 8))

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        flat = torch.cat([latents.flatten(1), sigma[:, None]], 1)
        return self.net(flat).view_as(latents)


class PlainPrompts:
    """The border of a base for fields that read no prompt."""

    latent_shape = (2, 2, 2)
    device = torch.device("cpu")

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        return unconditional(len(prompts), tuple(prompt.task for prompt in prompts))


def unconditional(count: int, tasks: Sequence[str] | None = None) -> Conditioning:
    """Returns a conditioning that says nothing, `count` rows."""
    return Conditioning(torch.zeros(count, 1, 1), torch.zeros(count, 1), tuple(tasks or ("any",) * count))


def gradients(parameters: Iterable[nn.Parameter], loss: Callable[[], Any]) -> list[Tensor]:
    """Returns the gradients that `loss` leaves, from a clean start."""
    chosen = list(parameters)
    for parameter in chosen:
        parameter.grad = None
    loss()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in chosen]


def read_steps(path: Path) -> list[dict[str, float]]:
    """Returns the lines of a metrics.jsonl without their wall time."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]
