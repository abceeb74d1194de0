"""The bases of precision.py: student, teachers and prompts, and the same in any number format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from random_base import write_base
from torch import Tensor

import flow_opd
from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.formats.reading import read_adapter
from flow_opd.adapters.lora import LoraWeights
from flow_opd.backbones.loading import DTYPES, load_backbone
from flow_opd.backbones.pipeline import DiffusersBackbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings, LoraSettings, PromptsSettings
from flow_opd.config.locations import locate
from flow_opd.method.policy import Policy
from flow_opd.protocols import PromptEncoder
from flow_opd.quiet import quiet_loading
from flow_opd.runs.base import Base
from flow_opd.runs.prompts import prompts_of
from flow_opd.types import Conditioning, Prompt, TransitionBatch

GUIDANCE = 4.5
STUDENT = "student"
THROUGH = " all through"  # added to a number format: between the blocks, too
TASKS = ("composition", "text", "preference", "quality")


@dataclass(frozen=True)
class Laboratory:
    """A base, a student with a teacher for each task, and prompts."""

    base: str
    loras: Mapping[str, LoraWeights]  # the student, and each teacher by its task
    prompts: Sequence[Prompt]
    num_steps: int
    window: tuple[int, int]  # stochastic steps, both included
    training: Mapping[str, Any]  # settings of the short distillation

    @property
    def tasks(self) -> list[str]:
        """The tasks, which are the teachers' names too."""
        return [name for name in self.loras if name != STUDENT]

    def looked_at(self, each: int) -> list[Prompt]:
        """Returns the first prompts of each task."""
        return [
            prompt
            for task in self.tasks
            for prompt in [one for one in self.prompts if one.task == task][:each]
        ]


def miniature() -> Laboratory:
    """Returns the miniature with its four teachers and their merge."""
    teachers = {task: read_adapter(locate(f"asset:teachers/{task}")) for task in TASKS}
    merged = flow_opd.merge(list(teachers.values()), method="svd", rank=32)
    prompts = prompts_of([PromptsSettings(path=f"asset:prompts/train/{task}.jsonl") for task in TASKS])
    training = {
        "run": {"out": "unused", "rounds": 12},
        "prompts_per_round": 8,
        "micro_batch_size": 8,
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 2, "decay": "cosine"},
    }
    return Laboratory("asset:base", {**teachers, STUDENT: merged}, prompts, 8, (0, 4), training)


def random_laboratory(folder: Path, *, layers: int, heads: int, latent_side: int) -> Laboratory:
    """Writes a random base and returns it with a student and a teacher.

    The factors B are so small that |v_student - v_teacher| is about a tenth of |v|, as in the miniature.
    """
    with quiet_loading():
        write_base(folder, layers=layers, heads=heads, latent_side=latent_side)
    bank = AdapterBank(load(str(folder), "float32"))
    for seed, name in enumerate((STUDENT, "teacher")):
        bank.add(name, LoraSettings(rank=32, alpha=64.0), seed)
        draw = torch.Generator().manual_seed(seed)
        state = {
            key: 0.02 * torch.randn(factor.shape, generator=draw) if "lora_B" in key else factor
            for key, factor in bank.state(name).items()
        }
        bank.load_state(name, state)
    training = {
        "run": {"out": "unused", "rounds": 8},
        "prompts_per_round": 2,
        "micro_batch_size": 2,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "decay": "cosine"},
    }
    prompts = [Prompt(text, "teacher") for text in ("a red circle", "a blue square", "circle", "red blue")]
    loras = {name: bank.weights(name) for name in bank.names}
    return Laboratory(str(folder), loras, prompts, 5, (0, 3), training)


def load(base: str, number_format: str) -> DiffusersBackbone:
    """Returns a base whose transformer computes in a number format, as this package does or all through."""
    through = number_format.endswith(THROUGH)
    dtype = "float32" if through else number_format
    settings = BaseModelSettings(path=base, max_sequence_length=0, dtype=dtype)
    backbone = load_backbone(settings, ComputeSettings(device="cpu"))
    if through:
        backbone.dtype = DTYPES[number_format.removesuffix(THROUGH)]
        backbone.transformer.to(backbone.dtype)
    return backbone


class Cast:
    """The policies of a laboratory in one number format."""

    def __init__(self, lab: Laboratory, number_format: str, texts: PromptEncoder | None = None) -> None:
        """Loads base and adapters.

        Args:
            lab: which.
            number_format: of the transformer's products, or of all that it computes (`THROUGH`).
            texts: encodes the prompts; None: the base itself.
        """
        self.backbone = load(lab.base, number_format)
        self.texts: PromptEncoder = texts or self.backbone
        self.bank = AdapterBank(self.backbone)
        settings = BaseModelSettings(path=lab.base, max_sequence_length=0)
        self.base = Base(settings, ComputeSettings(device="cpu"), self.backbone, self.bank)
        for name, lora in lab.loras.items():
            self.bank.put(name, lora)
        self.bank.train(STUDENT)

    def velocity(self, name: str, batch: TransitionBatch, rows: Sequence[int] | None = None) -> Tensor:
        """Returns the guided velocity of an adapter at states, [M, C, H, W], or at some of their rows."""
        chosen = list(range(len(batch))) if rows is None else list(rows)
        policy = Policy(
            self.backbone, adapters=self.bank, adapter=name, encoder=self.texts, guidance_scale=GUIDANCE
        )
        return policy.velocity(batch.latents[chosen], batch.sigma[chosen], batch.conditioning.rows(chosen))

    @torch.no_grad()
    def teachers(self, batch: TransitionBatch) -> Tensor:
        """Returns the guided velocity of each row's own teacher, [M, C, H, W]."""
        velocity = torch.empty_like(batch.latents)
        tasks = batch.conditioning.tasks
        for task in dict.fromkeys(tasks):
            rows = [row for row, other in enumerate(tasks) if other == task]
            velocity[rows] = self.velocity(task, batch, rows)
        return velocity


class Encoded:
    """Prompts that were encoded once, in float32 whatever the transformer computes in."""

    def __init__(self, lab: Laboratory) -> None:
        """Loads the text encoders."""
        self.backbone = load(lab.base, "float32")
        self._known: dict[str, Conditioning] = {}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns the conditioning of the prompts."""
        for prompt in prompts:
            if prompt.text not in self._known:
                self._known[prompt.text] = self.backbone.encode_prompts([prompt])
        known = [self._known[prompt.text] for prompt in prompts]
        return Conditioning(
            torch.cat([one.embeds for one in known]),
            torch.cat([one.pooled for one in known]),
            tuple(prompt.task for prompt in prompts),
        )
