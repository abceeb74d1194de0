"""Sections that several stages share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from flow_opd.config.base import (
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    Settings,
    StageSettings,
    refuse,
)
from flow_opd.config.kinds import Kind, load
from flow_opd.config.parts import Part, of_signature

ATTENTION_PROJECTIONS = tuple(
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
"""The eight projections of SD3's joint attention that Flow-GRPO and Flow-OPD adapt."""
Decay = Annotated[float, Field(ge=0, lt=1)]


class BackboneSettings(Part):
    """What works with a base. A class of one's own is a subclass of
    `flow_opd.backbones.pipeline.DiffusersBackbone`; its `wrap` is given the settings of the base."""

    kind: ClassVar[Kind] = Kind(
        "backbone",
        "flow_opd.backbones",
        {
            "StableDiffusion3Pipeline": "flow_opd.config.common:PipelineSettings",
            "FluxPipeline": "flow_opd.config.common:PipelineSettings",
        },
        method="wrap",
        takes=None,
    )

    @classmethod
    def of_code(cls, name: str, code: Callable[..., Any]) -> type[Self]:
        """Returns settings without fields: what a backbone is made of comes from its base."""
        return of_signature(cls, name, code, fields=False)

    def build(self) -> Any:
        """Returns the class, a subclass of `DiffusersBackbone`."""
        assert self.code is not None, f"{type(self).__name__} has a method 'build' of its own"
        return self.code


class PipelineSettings(BackboneSettings):
    """A backbone of this package, by the class of diffusers that a base's model_index.json names."""

    name: Literal["StableDiffusion3Pipeline", "FluxPipeline"]
    """Which one this is."""

    def build(self) -> Any:
        """Returns the class, a subclass of `DiffusersBackbone`."""
        own = {"StableDiffusion3Pipeline": "sd3:SD3Backbone", "FluxPipeline": "flux:FluxBackbone"}
        return load(f"flow_opd.backbones.{own[self.name]}")


class BaseModelSettings(Settings):
    """The frozen pipeline that every adapter sits on."""

    path: Name
    """Diffusers folder, 'asset:NAME' of the package, or hub id 'owner/name'."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    variant: str | None = None
    """File variant of the weights, such as 'fp16'."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the frozen transformer and text encoders; the VAE and all adapters are float32."""
    max_sequence_length: NonNegativeInt
    """T5 tokens per prompt: 128 for Stable Diffusion 3.5, 0 for a base without T5, which needs no padding."""
    t5: bool = True
    """Loads the T5 encoder where the base has one; without it prompts are encoded by CLIP alone."""
    backbone: BackboneSettings | None = None
    """What works with this base; null goes by the pipeline class that its model_index.json names."""
    resolution: PositiveInt | None = None
    """Height and width of the images in pixels; null takes the size that the base was made for."""
    embedded_guidance: NonNegativeFloat | None = None
    """Guidance that a guidance-distilled base (FLUX.1-dev) reads as an input; null for other bases."""
    offline: bool = False
    """Never contacts the hub: only what has been downloaded before is used."""

    @model_validator(mode="after")
    def _the_miniature_has_no_t5(self) -> BaseModelSettings:
        if self.path.startswith("asset:") and self.max_sequence_length:
            what, allowed = "T5 tokens for a base that was made without T5", "0 for the miniature's base"
            at = ("max_sequence_length",)
            refuse([Problem(at, what, self.max_sequence_length, allowed, "leave them out, or set it to 0")])
        return self


class ComputeSettings(Settings):
    """How forward passes are computed: it changes memory and speed, not results."""

    device: Name = "auto"
    """'auto' takes an accelerator where there is one; or 'cpu', 'cuda', 'cuda:1', 'mps'."""
    guidance_batching: Literal["batched", "sequential"] = "batched"
    """Whether the two halves of classifier-free guidance are one forward pass, or two of half the memory."""
    attention_backend: Name | None = None
    """Attention implementation of diffusers, such as 'native' or 'flash'; null leaves diffusers' choice."""
    compile: bool = False
    """Compiles the transformer's blocks by torch.compile: slow first step, faster ones after it."""
    vae_tiling: bool = False
    """Decodes images in tiles: less memory at high resolutions."""


class TrainingComputeSettings(ComputeSettings):
    """What backward passes and several processes add to it."""

    gradient_checkpointing: bool = False
    """Keeps only the inputs of each transformer block and computes the rest again in the backward pass."""
    shard_base: bool = False
    """Splits the frozen weights over the processes (FSDP2) where the base does not fit one device; slower."""


class LoraSettings(Settings):
    """A low-rank adapter: the weight change alpha / rank * B A of each named projection."""

    rank: PositiveInt = 32
    """Rank: inner dimension of the two factors A and B."""
    alpha: PositiveFloat = 64.0
    """The weight change is scaled by alpha / rank."""
    target_modules: Annotated[tuple[Name, ...], Field(min_length=1)] = ATTENTION_PROJECTIONS
    """Projections that get an adapter, by their module names or dotted endings of these."""

    @property
    def scale(self) -> float:
        """The factor alpha / rank in front of B A."""
        return self.alpha / self.rank

    def targets(self, module: str) -> bool:
        """Returns whether `module` is meant: it is named in full, or by a dotted ending, as PEFT matches."""
        return any(_names(target, module) for target in self.target_modules)

    def unmatched(self, modules: Iterable[str]) -> list[str]:
        """Returns the targets that name none of `modules`."""
        known = list(modules)
        return [target for target in self.target_modules if not any(_names(target, one) for one in known)]


def _names(target: str, module: str) -> bool:
    return module == target or module.endswith("." + target)


class OptimizerSettings(Settings):
    """AdamW with warm-up and decay."""

    learning_rate: PositiveFloat = 1e-4
    """Learning rate after the warm-up."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the two moments."""
    warmup_steps: NonNegativeInt = 0
    """Updates over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate schedule after the warm-up; linear and cosine end at 0 after the last round."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    state_bits: Literal[32, 8] = 32
    """Bits of a number in AdamW's two moments; 8 needs the package bitsandbytes."""


class EMASettings(Settings):
    """Exponential moving average of the trained weights; the average is what is saved in the end."""

    decay: Decay = 0.9
    """Decay: share of the old average that an update keeps."""
    every: PositiveInt = 8
    """Optimizer updates between two updates of the average."""


class CheckpointSettings(Settings):
    """When a training is saved for a later resume."""

    every_minutes: PositiveFloat = 3.0
    """Minutes between two checkpoints; they are taken at the end of a round."""
    keep: PositiveInt = 2
    """Newest checkpoints that stay on disk."""


class EmbeddingSettings(Settings):
    """Prompts are encoded once, kept on disk, and the text encoders leave memory before the work begins."""

    folder: Path | None = None
    """Where the encoded prompts are kept, for all runs with the same encoders; null: below the run folder."""
    batch_size: PositiveInt = 16
    """Prompts that are encoded at once."""
    shard_size: PositiveInt = 256
    """Prompts of one file."""


class PlaceSettings(Settings):
    """Where the results go, and on how many threads the work is done."""

    out: Path
    """Run folder; it is made if absent."""
    threads: PositiveInt | None = None
    """Processor threads; null takes all cores."""


class RunSettings(PlaceSettings):
    """A place, and the seed from which everything random is drawn."""

    seed: NonNegativeInt = 0
    """Root of all random numbers of the run."""


class TrainingRunSettings(RunSettings):
    """A run that trains for a number of rounds."""

    rounds: PositiveInt
    """Rounds of training: collect, then update."""


class TrainingStage(StageSettings):
    """What every training of an adapter names beside its method."""

    run: TrainingRunSettings
    """Run folder, seed and length."""
    base: BaseModelSettings
    """The frozen pipeline that all adapters share."""
    compute: TrainingComputeSettings = TrainingComputeSettings()
    """Device, memory and speed."""
    embeddings: EmbeddingSettings | None = None
    """Encodes all prompts beforehand, for bases with large text encoders; null encodes them as they come."""


class TrainingConfig(Settings):
    """What every training of an adapter is set by, on the command line and in Python."""

    optimizer: OptimizerSettings = OptimizerSettings()
    """AdamW."""
    ema: EMASettings | None = EMASettings()
    """Average of the adapter's weights, or null for none."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Saving for a resume."""


class PromptsSettings(Settings):
    """A file of prompts."""

    path: Name
    """Text file (a prompt a line) or jsonl ('prompt' and 'task', or GenEval metadata); or 'asset:NAME'."""
    task: Name | None = None
    """Task of all prompts in a file whose lines do not name theirs."""
    limit: PositiveInt | None = None
    """Takes only so many prompts from the start of the file."""
    text_in_quotes: bool = False
    """The first words in double quotes are what the OCR reward looks for, as in Flow-GRPO's text files."""
    unique: bool = False
    """Refuses the file if it holds a prompt twice."""
    disjoint_from: tuple[Name, ...] = ()
    """Prompt files, such as a test set, that may share no prompt with this one."""


PROMPT_CHECKS = ("unique", "disjoint_from")  # settings of a prompts file that change no prompt


def duplicates(names: list[str]) -> list[tuple[int, str]]:
    """Returns position and name of every name that was there before."""
    return [(index, name) for index, name in enumerate(names) if name in names[:index]]
