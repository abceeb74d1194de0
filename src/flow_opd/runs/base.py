"""The frozen base of a run, the adapters on it, and its prompts encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.lora import LoraWeights
from flow_opd.backbones import loading
from flow_opd.backbones.compute import choose_device
from flow_opd.config.common import (
    BaseModelSettings,
    ComputeSettings,
    EmbeddingSettings,
    TrainingComputeSettings,
)
from flow_opd.config.file.reader import from_values
from flow_opd.config.locations import ASSET
from flow_opd.config.versions import code_versions
from flow_opd.layout import EMBEDDINGS
from flow_opd.method.policy import Policy
from flow_opd.processes import ALONE, Processes
from flow_opd.prompts.embeddings import EmbeddingCache
from flow_opd.protocols import LoadedBackbone, PromptEncoder
from flow_opd.runs.launch import shard_base
from flow_opd.training.progress import ProgressBar
from flow_opd.types import Prompt


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen pipeline in memory, the adapters on it, and who works with it."""

    settings: BaseModelSettings
    compute: ComputeSettings
    backbone: LoadedBackbone
    bank: AdapterBank
    processes: Processes = ALONE
    _held: dict[str, str] = field(default_factory=dict, repr=False)  # digest -> name of a frozen adapter

    @classmethod
    def load(
        cls, settings: BaseModelSettings, compute: ComputeSettings, processes: Processes = ALONE
    ) -> Base:
        """Returns a base on the device of this process, computing as the settings say.

        Raises:
            ConfigError: if it cannot be had, is no pipeline that we know, or cannot be used as asked.
        """
        if processes.count > 1:
            compute = compute.model_copy(update={"device": processes.device})
        backbone = loading.load_backbone(settings, compute)
        return cls(settings, compute, backbone, AdapterBank(backbone), processes)

    @property
    def is_sharded(self) -> bool:
        """Says whether the processes hold the frozen weights in pieces."""
        return isinstance(self.compute, TrainingComputeSettings) and self.compute.shard_base

    def policy(
        self, adapter: str | None, guidance_scale: float = 1.0, *, encoder: PromptEncoder | None = None
    ) -> Policy:
        """Returns the velocity field of an adapter in the bank, or of the bare base (None)."""
        return Policy(
            self.backbone,
            adapters=self.bank,
            adapter=adapter,
            encoder=encoder,
            guidance_scale=guidance_scale,
            guidance_batching=self.compute.guidance_batching,
            collective=self.is_sharded,
        )

    def shard(self) -> None:
        """Splits the frozen weights over the processes, if the settings say so; no adapter may come later."""
        if self.is_sharded:
            shard_base(self.backbone.transformer, self.processes)

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Takes the adapters off again that were put on the base inside, if what is done there is refused."""
        before, student = set(self.bank.names), self.bank.student
        try:
            yield
        except BaseException:
            for name in set(self.bank.names) - before:
                self.bank.remove(name)
            if student is not None:
                self.bank.train(student)
            raise

    @contextmanager
    def with_adapter(self, lora: LoraWeights | None) -> Iterator[str | None]:
        """Holds an adapter for a while and yields its name in the bank; None for the bare base.

        Raises:
            AdapterError: if it does not fit the base.
        """
        if lora is None:
            yield None
            return
        name = self.put("chosen", lora)
        try:
            yield name
        finally:
            self.bank.remove(name)

    def hold(self, name: str, lora: LoraWeights) -> str:
        """Puts a frozen adapter on the base, as `put` does, but none with the same weights twice."""
        digest = lora.digest()
        if self._held.get(digest) not in self.bank.names:
            self._held[digest] = self.put(name, lora)
        return self._held[digest]

    def put(self, name: str, lora: LoraWeights) -> str:
        """Puts an adapter on the base and returns its name there: `name`, or one like it if that is taken.

        Raises:
            AdapterError: if the name is unfit, or the LoRA belongs to another base.
        """
        free = self.bank.free_name(name)
        self.bank.put(free, lora)
        return free


def load_base(
    path: str | Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    max_sequence_length: int | None = None,
    resolution: int | None = None,
    revision: str | None = None,
    variant: str | None = None,
    embedded_guidance: float | None = None,
    backbone: str | None = None,
    t5: bool = True,
    offline: bool = False,
    compute: ComputeSettings | None = None,
) -> Base:
    """Returns a frozen pipeline, ready for adapters.

    Args:
        path: diffusers folder, 'asset:base' for the miniature, or hub id 'owner/name'.
        dtype: number format of the frozen transformer and text encoders; VAE and adapters are float32.
        max_sequence_length: T5 tokens of a prompt; None takes 0 for the miniature, which has no T5, and 128.
        resolution: height and width of the images in pixels; None takes the size that the base was made for.
        revision: branch, tag or commit of a hub repository.
        variant: of the files of its weights, such as 'fp16'.
        embedded_guidance: that a guidance-distilled base (FLUX.1-dev) reads as an input.
        backbone: 'package.module:Name' of what works with it; None goes by its pipeline class.
        t5: loads the T5 encoder where the base has one.
        offline: never asks the hub.
        compute: device, memory and speed; None takes an accelerator where there is one.

    Raises:
        ConfigError: if it cannot be had, is no pipeline that we know, or cannot be used as asked.
    """
    if max_sequence_length is None:
        max_sequence_length = 0 if str(path).startswith(ASSET) else 128
    values = {
        "path": str(path),
        "dtype": dtype,
        "max_sequence_length": max_sequence_length,
        "resolution": resolution,
        "revision": revision,
        "variant": variant,
        "embedded_guidance": embedded_guidance,
        "backbone": backbone,
        "t5": t5,
        "offline": offline,
    }
    settings = from_values(values, BaseModelSettings, source="load_base")
    return Base.load(settings, compute or TrainingComputeSettings())


def device_of(compute: ComputeSettings, processes: Processes = ALONE) -> torch.device:
    """Returns the device of this process, where the base and large reward models compute."""
    return choose_device(processes.device if processes.count > 1 else compute.device)


def encode_beforehand(
    embeddings: EmbeddingSettings | None, base: Base, prompts: Sequence[Prompt], folder: Path
) -> PromptEncoder:
    """Returns what encodes prompts from now on: the base, or a filled cache after the encoders have gone.

    Args:
        embeddings: null leaves the encoders in memory.
        base: whose encoders are used, and freed.
        prompts: all that will be asked for; the empty prompt of guidance is added.
        folder: the run folder.
    """
    if embeddings is None:
        return base.backbone
    identity, code = base.backbone.encoder_identity(), code_versions(base.settings)
    if code:  # a backbone of somebody else encodes by its own code
        identity = hashlib.sha256(json.dumps([identity, code]).encode()).hexdigest()
    cache = EmbeddingCache(
        embeddings.folder or folder / EMBEDDINGS,
        identity,
        shard_size=embeddings.shard_size,
    )
    texts = ["", *(prompt.text for prompt in prompts)]
    processes = base.processes
    own = len(processes.rows(len(cache.missing(texts))))
    bar = ProgressBar("encoding prompts", total_steps=own, show=(), shown=processes.is_main and own > 0)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.on_update(done, {})

    cache.fill(texts, base.backbone, batch_size=embeddings.batch_size, processes=processes, on_batch=advance)
    bar.on_end()
    base.backbone.free_encoders()
    return cache
