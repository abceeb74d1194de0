"""The frozen base of a run, and its prompts encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from flow_opd.backbones import loading
from flow_opd.backbones.compute import choose_device
from flow_opd.config.common import BaseModelSettings, ComputeSettings, EmbeddingSettings
from flow_opd.processes import ALONE, Processes
from flow_opd.prompts.embeddings import EmbeddingCache
from flow_opd.protocols import LoadedBackbone, PromptEncoder
from flow_opd.training.progress import ProgressBar
from flow_opd.types import Prompt


def load_backbone(
    base: BaseModelSettings, compute: ComputeSettings, processes: Processes = ALONE
) -> LoadedBackbone:
    """Returns the frozen base, on the device of this process and computing as the settings say."""
    if processes.count > 1:
        compute = compute.model_copy(update={"device": processes.device})
    return loading.load_backbone(base, compute)


def device_of(compute: ComputeSettings, processes: Processes = ALONE) -> torch.device:
    """Returns the device of this process, where the base and large reward models compute."""
    return choose_device(processes.device if processes.count > 1 else compute.device)


def encode_beforehand(
    embeddings: EmbeddingSettings | None,
    backbone: LoadedBackbone,
    prompts: Sequence[Prompt],
    folder: Path,
    processes: Processes,
) -> PromptEncoder:
    """Returns what encodes prompts from now on: the base, or a filled cache after the encoders have gone.

    Args:
        embeddings: null leaves the encoders in memory.
        backbone: whose encoders are used, and freed.
        prompts: all that will be asked for; the empty prompt of guidance is added.
        folder: the run folder.
        processes: who shares the work.
    """
    if embeddings is None:
        return backbone
    cache = EmbeddingCache(
        embeddings.folder or folder / "embeddings",
        backbone.encoder_identity(),
        shard_size=embeddings.shard_size,
    )
    texts = ["", *(prompt.text for prompt in prompts)]
    own = len(processes.rows(len(cache.missing(texts))))
    bar = ProgressBar("encoding prompts", total_steps=own, show=(), shown=processes.is_main and own > 0)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.on_update(done, {})

    cache.fill(texts, backbone, batch_size=embeddings.batch_size, processes=processes, on_batch=advance)
    bar.on_end()
    backbone.free_encoders()
    return cache
