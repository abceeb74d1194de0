"""From settings to the objects that several stages need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flow_opd.adapters.settings import LoraSettings
from flow_opd.backbones import loading
from flow_opd.config import common
from flow_opd.config.base import Settings
from flow_opd.config.locations import locate, locate_model
from flow_opd.config.rewards import DeQASettings, GenEvalSettings, OCRSettings, PickScoreSettings, RewardSpec
from flow_opd.files import sha256
from flow_opd.flow.dynamics import DYNAMICS
from flow_opd.flow.schedule import make_schedule
from flow_opd.processes import ALONE, Processes
from flow_opd.prompts.batches import PromptGroups
from flow_opd.prompts.embeddings import EmbeddingCache
from flow_opd.prompts.jsonl import read_lines
from flow_opd.prompts.overlap import problems, refuse
from flow_opd.protocols import Backbone, PromptEncoder, Reward
from flow_opd.rewards.deqa import DeQAReward
from flow_opd.rewards.detectors import PaletteDetector
from flow_opd.rewards.geneval import GenEvalReward
from flow_opd.rewards.ocr import LineReader, OCRReward
from flow_opd.rewards.page_reader import PageReader
from flow_opd.rewards.pickscore import PickScoreReward
from flow_opd.rollout.walks import Walks
from flow_opd.training.progress import ProgressBar
from flow_opd.training.seeding import generator
from flow_opd.types import Prompt


def load_backbone(
    base: common.BaseModelSettings, compute: common.ComputeSettings, processes: Processes = ALONE
) -> Backbone:
    """Returns the frozen base, on the device of this process and computing as the settings say."""
    if processes.count > 1:
        compute = compute.model_copy(update={"device": processes.device})
    return loading.load_backbone(base, compute)


def encode_beforehand(
    embeddings: common.EmbeddingSettings | None,
    backbone: Backbone,
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


def lora_settings(lora: common.LoraSettings) -> LoraSettings:
    """Returns rank, alpha and targets as the adapter bank takes them."""
    return LoraSettings(rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules)


def load_prompts(files: Sequence[common.PromptsSettings]) -> list[Prompt]:
    """Returns the prompts of all files, in order.

    Raises:
        DataError: for files that cannot be read; where the settings ask for it, also for prompts that are
            there twice or in a file that may share none.
    """
    return [prompt for file in files for prompt in _load_file(file)]


def _load_file(file: common.PromptsSettings) -> list[Prompt]:
    lines = read_lines(
        locate(file.path, key="prompts.path"), task=file.task, text_in_quotes=file.text_in_quotes
    )[: file.limit]
    others = {
        name: read_lines(locate(name, key="prompts.disjoint_from"), task="none")
        for name in file.disjoint_from
    }
    refuse(problems(file.path, lines, repeated=not file.unique, others=others))
    return [prompt for _, prompt in lines]


def build_reward(spec: RewardSpec) -> Reward:
    """Returns the reward that a specification describes."""
    if isinstance(spec, GenEvalSettings):
        return GenEvalReward(PaletteDetector(locate(spec.palette, key="palette")))
    if isinstance(spec, OCRSettings):
        if spec.reader == "page":
            return OCRReward(PageReader())
        return OCRReward(LineReader(alphabet=spec.alphabet, width=spec.width, batch_size=spec.batch_size))
    if isinstance(spec, DeQASettings):
        return DeQAReward(locate(spec.path, key="path"))
    assert isinstance(spec, PickScoreSettings), spec
    return PickScoreReward(locate_model(spec.path, key="path"))


def build_walks(
    backbone: Backbone,
    encoder: PromptEncoder,
    groups: PromptGroups,
    sampling: common.SamplingSettings,
    *,
    seed: int,
    micro_batch_size: int,
    processes: Processes,
) -> Walks:
    """Returns how the student walks in training; trajectory i of round r has its own noise."""

    def seeder(index: int, row: int) -> torch.Generator:
        return generator(seed, "walk", index, row)

    return Walks(
        prompts_of_round=groups.round,
        encoder=encoder,
        seeder=seeder,
        schedule=make_schedule(
            backbone.sigmas(sampling.num_steps),
            noise_level=sampling.noise_level,
            stochastic_steps=sampling.stochastic_range(),
        ),
        dynamics=DYNAMICS.get(sampling.dynamics),
        micro_batch_size=micro_batch_size,
        processes=processes,
    )


def fingerprint(settings: Settings, base: common.BaseModelSettings, files: Sequence[Path]) -> str:
    """Returns a hash of everything that decides the numbers of a training.

    Where the run is written, what computes it, how often it is saved, whether the hub is asked and how its
    prompts are checked do not.
    A base is known by the names and sizes of its weights (hashing gigabytes at every start would be no
    favour), everything else by its content: a teacher or a prompts file that was replaced does not go
    unnoticed at a resume.

    Args:
        settings: all settings of the stage.
        base: its base.
        files: prompts files, and folders of adapters and reward models.
    """
    relevant: dict[str, Any] = settings.model_dump(mode="json")
    for section in ("checkpoint", "compute", "embeddings"):
        relevant.pop(section, None)
    for key in ("out", "threads"):
        relevant.get("run", {}).pop(key, None)
    relevant["base"].pop("offline", None)
    for file in relevant.get("prompts", []):
        for key in common.PROMPT_CHECKS:
            file.pop(key)
    return hashed(relevant, base, files)


def hashed(relevant: Mapping[str, Any], base: common.BaseModelSettings, files: Sequence[Path]) -> str:
    """Returns a hash of values, of the names and sizes of a base's weights, and of the content of files."""
    weights = _weights(Path(locate_model(base.path, key="base.path")))
    whole = {**relevant, "base weights": weights, "files": [content(file) for file in files]}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def _weights(folder: Path) -> dict[str, int]:
    """Returns name -> size of the weights in a local folder; nothing for a hub id, which has a revision."""
    return {
        str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*.safetensors"))
    }


def content(path: Path) -> list[str]:
    """Returns the hashes of a file, or of all files below a folder."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return [sha256(file) for file in files]


def prompt_files(files: Sequence[common.PromptsSettings]) -> list[Path]:
    """Returns where the prompts are."""
    return [locate(file.path, key="prompts.path") for file in files]


def reward_files(specs: Sequence[RewardSpec]) -> list[Path]:
    """Returns where the rewards' own files are; models of a hub are known by their id alone."""
    named = {
        "palette": [spec.palette for spec in specs if isinstance(spec, GenEvalSettings)],
        "path": [spec.path for spec in specs if isinstance(spec, DeQASettings | PickScoreSettings)],
    }
    paths = [Path(locate_model(name, key=key)) for key, names in named.items() for name in names]
    return [path for path in paths if path.exists()]
