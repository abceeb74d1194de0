"""Multi-teacher on-policy distillation for flow-matching text-to-image models.

    import flow_opd

    base = flow_opd.load_base("asset:base")
    teachers = {task: flow_opd.load_adapter(f"asset:teachers/{task}") for task in ("composition", "text")}
    prompts = flow_opd.load_prompts(*(f"asset:prompts/train/{task}.jsonl" for task in teachers))
    student = flow_opd.merge(list(teachers.values()))
    training = flow_opd.distill(base, teachers, prompts, rounds=10, student=student)
    for metrics in training:
        print(metrics["round"], metrics["teacher_gap"])
    training.save("student")

Nothing heavy is imported before a name is used. docs/python.md is written for who begins here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flow_opd.adapters.lora import LoraWeights as LoraWeights
    from flow_opd.config.common import EMASettings as EMASettings
    from flow_opd.config.common import LoraSettings as LoraSettings
    from flow_opd.config.common import OptimizerSettings as OptimizerSettings
    from flow_opd.config.distill import DistillConfig as DistillConfig
    from flow_opd.config.sampling import SamplingSettings as SamplingSettings
    from flow_opd.config.sft import SFTConfig as SFTConfig
    from flow_opd.config.teacher import GRPOConfig as GRPOConfig
    from flow_opd.errors import FlowOPDError as FlowOPDError
    from flow_opd.rewards.table import TrainingReward as TrainingReward
    from flow_opd.rewards.table import load_reward as load_reward
    from flow_opd.runs.adapters import load_adapter as load_adapter
    from flow_opd.runs.adapters import merge_adapters as merge
    from flow_opd.runs.base import Base as Base
    from flow_opd.runs.base import load_base as load_base
    from flow_opd.runs.prompts import load_prompts as load_prompts
    from flow_opd.runs.teachers import Anchor as Anchor
    from flow_opd.runs.teachers import Teacher as Teacher
    from flow_opd.runs.training import Training as Training
    from flow_opd.stages.distill import distill as distill
    from flow_opd.stages.evaluate import evaluate as evaluate
    from flow_opd.stages.generate import generate as generate
    from flow_opd.stages.sft import sft as sft
    from flow_opd.stages.teacher import grpo as grpo
    from flow_opd.types import Prompt as Prompt

_HOMES = {
    "Anchor": "runs.teachers",
    "Base": "runs.base",
    "DistillConfig": "config.distill",
    "EMASettings": "config.common",
    "FlowOPDError": "errors",
    "GRPOConfig": "config.teacher",
    "LoraSettings": "config.common",
    "LoraWeights": "adapters.lora",
    "OptimizerSettings": "config.common",
    "Prompt": "types",
    "SFTConfig": "config.sft",
    "SamplingSettings": "config.sampling",
    "Teacher": "runs.teachers",
    "Training": "runs.training",
    "TrainingReward": "rewards.table",
    "distill": "stages.distill",
    "evaluate": "stages.evaluate",
    "generate": "stages.generate",
    "grpo": "stages.teacher",
    "load_adapter": "runs.adapters",
    "load_base": "runs.base",
    "load_prompts": "runs.prompts",
    "load_reward": "rewards.table",
    "merge": "runs.adapters:merge_adapters",
    "sft": "stages.sft",
}
"""Public name -> its module, below this package."""

__all__ = [
    "Anchor",
    "Base",
    "DistillConfig",
    "EMASettings",
    "FlowOPDError",
    "GRPOConfig",
    "LoraSettings",
    "LoraWeights",
    "OptimizerSettings",
    "Prompt",
    "SFTConfig",
    "SamplingSettings",
    "Teacher",
    "Training",
    "TrainingReward",
    "distill",
    "evaluate",
    "generate",
    "grpo",
    "load_adapter",
    "load_base",
    "load_prompts",
    "load_reward",
    "merge",
    "sft",
]


def __getattr__(name: str) -> Any:
    """Returns a public verb or noun, importing it when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flow_opd' has no attribute {name!r}")
    importlib.import_module("flow_opd.quiet").silence_imports()
    home, _, inside = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(f"flow_opd.{home}"), inside or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Returns the public names."""
    return sorted(__all__)
