"""From settings to the objects that several stages need."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flow_opd.adapters.settings import LoraSettings
from flow_opd.backbones import loading
from flow_opd.config import common
from flow_opd.config.locations import locate, locate_model
from flow_opd.config.rewards import DeQASettings, GenEvalSettings, OCRSettings, PickScoreSettings, RewardSpec
from flow_opd.flow.dynamics import DYNAMICS
from flow_opd.flow.schedule import make_schedule
from flow_opd.processes import ALONE, Processes
from flow_opd.prompts.batches import PromptGroups
from flow_opd.prompts.jsonl import read_lines
from flow_opd.prompts.overlap import problems, refuse
from flow_opd.protocols import Backbone, LoadedBackbone, PromptEncoder, Reward
from flow_opd.rewards.deqa import DeQAReward
from flow_opd.rewards.detectors import PaletteDetector
from flow_opd.rewards.geneval import GenEvalReward
from flow_opd.rewards.ocr import LineReader, OCRReward
from flow_opd.rewards.page_reader import PageReader
from flow_opd.rewards.pickscore import PickScoreReward
from flow_opd.rollout.walks import Walks
from flow_opd.training.seeding import generator
from flow_opd.types import Prompt


def load_backbone(
    base: common.BaseModelSettings, compute: common.ComputeSettings, processes: Processes = ALONE
) -> LoadedBackbone:
    """Returns the frozen base, on the device of this process and computing as the settings say."""
    if processes.count > 1:
        compute = compute.model_copy(update={"device": processes.device})
    return loading.load_backbone(base, compute)


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
