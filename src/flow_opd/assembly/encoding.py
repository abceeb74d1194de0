"""Encodes all prompts of a run before its work begins, so that the text encoders can leave memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flow_opd.config.common import EmbeddingSettings
from flow_opd.processes import Processes
from flow_opd.prompts.embeddings import EmbeddingCache
from flow_opd.protocols import LoadedBackbone, PromptEncoder
from flow_opd.training.progress import ProgressBar
from flow_opd.types import Prompt


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
