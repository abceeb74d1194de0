"""The plan, which runs no numbers, against rounds that do: FLOPs and memory of a tiny real base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from flow_opd.adapters.formats.reading import read_adapter
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import from_values
from flow_opd.config.options import PlanSettings
from flow_opd.config.state_weights import TransitionWeightsSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.method.grpo import grpo
from flow_opd.method.opd import distillation
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.walk import build_walks
from flow_opd.planning.job import TrainingSettings
from flow_opd.planning.meter import CPU_ATTENTION
from flow_opd.planning.plan import Plan
from flow_opd.processes import ALONE
from flow_opd.protocols import BatchSource, Objective
from flow_opd.runs.base import Base
from flow_opd.runs.teachers import named_policies
from flow_opd.stages.plan import plan_training
from flow_opd.types import Conditioning, Prompt, RewardScores, RewardTable

pytestmark = pytest.mark.slow
PROMPTS = [Prompt("a red circle", "shapes"), Prompt("a sign that says CAB", "signs")]


class NoReward:
    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardTable:
        zeros, valid = torch.zeros(len(prompts)), torch.ones(len(prompts), dtype=torch.bool)
        return RewardTable({"none": RewardScores("none", zeros, valid, (0.0, 0.0))}, {"none": 1.0})


@dataclass
class Round:
    """A round of a real training, prompts encoded beforehand."""

    source: BatchSource
    objective: Objective
    parameters: list[torch.nn.Parameter]

    def run(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        for update in self.source.round(0):
            for batch in update:
                self.objective(batch).total.backward()

    def flops(self) -> int:
        with FlopCounterMode(display=False, custom_mapping=dict(CPU_ATTENTION)) as counter:
            self.run()
        return counter.get_total_flops()

    def peak(self) -> int:
        """Most bytes alive at a time, gradients included, by the events of torch's allocator."""
        self.run()
        for parameter in self.parameters:
            parameter.grad = None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.run()
        events = [one for one in profiler.profiler.kineto_results.events() if one.name() == "[memory]"]
        alive = peak = 0
        for event in sorted(events, key=lambda one: one.start_ns()):
            alive += event.nbytes()
            peak = max(peak, alive)
        return peak


def real_round(settings: TrainingSettings, disk: Any) -> Round:
    base = Base.load(settings.base, settings.compute)
    backbone, bank = base.backbone, base.bank
    encoded = backbone.encode_prompts([PROMPTS[0]])

    def known(prompts: Sequence[Prompt]) -> Conditioning:
        rows = encoded.rows([0] * len(prompts))
        return Conditioning(rows.embeds, rows.pooled, tuple(prompt.task for prompt in prompts))

    encoder = SimpleNamespace(encode_prompts=known)
    if isinstance(settings, DistillSettings):
        groups = PromptRounds(PROMPTS, 0, settings.prompts_per_round, settings.task_shares)
    else:
        groups = PromptRounds(PROMPTS, 0, settings.groups_per_round)
    walks = build_walks(
        backbone,
        encoder,
        groups,
        settings.sampling,
        weights=TransitionWeightsSettings(),
        seed=0,
        micro_batch_size=settings.micro_batch_size,
        processes=ALONE,
    )
    if isinstance(settings, DistillSettings):
        for name, folder in (("a", "a"), ("b", "b"), ("anchor", "c"), ("student", "wide")):
            bank.put(name, read_adapter(disk.adapters[folder]))
        bank.train("student")
        parts = distillation(settings, named_policies(settings, base, encoder), walks)
    else:
        bank.add("student", settings.lora, 0)
        bank.train("student")
        scale = settings.sampling.guidance_scale
        student, reference = (base.policy(name, scale, encoder=encoder) for name in ("student", None))
        parts = grpo(settings, student, reference, backbone, walks, NoReward(), seed=0)
    return Round(*parts, list(bank.parameters("student").values()))


def planned(settings: TrainingSettings) -> Plan:
    return plan_training(settings, PlanSettings())


DISTILLATIONS: dict[str, dict[str, Any]] = {
    "ragged micro-batches and unequal shares": {
        "micro_batch_size": 3,
        "compute": {"guidance_batching": "sequential"},
        "task_shares": {"shapes": 3.0, "signs": 1.0},
    },
    "checkpointing, no guidance": {
        "compute": {"gradient_checkpointing": True},
        "sampling": {"num_steps": 2, "guidance_scale": 1.0},
    },
    "policy gradient": {"objective": {"name": "sampled-log-ratio", "updates_per_round": 2}},
}
GRPO: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo, one step of two": {"steps_per_round": 1, "updates_per_round": 2, "kl_weight": 0.0},
    "grpo, weights of one's own": {"state_weights": {"name": "custom", "values": [1.0, 2.0, 0.0]}},
}


@pytest.mark.parametrize("case", [*DISTILLATIONS, *GRPO])
def test_flops_of_an_update_are_those_of_a_real_one(disk, case: str) -> None:
    if case in GRPO:
        grpo = from_values(disk.grpo(**GRPO[case]), TeacherSettings)
        expected, plan = real_round(grpo, disk).flops() / grpo.updates_per_round, planned(grpo)
    else:
        settings = from_values(disk.distillation(**DISTILLATIONS[case]), DistillSettings)
        expected, plan = real_round(settings, disk).flops() / settings.updates_per_round(), planned(settings)
    assert sum(plan.flops.values()) == pytest.approx(expected, rel=1e-6)


def allocated(plan: Plan, checkpointing: bool) -> int:
    """What the plan says that a round allocates."""
    memory = plan.memory[checkpointing]
    return memory.kept + memory.working + memory.fixed["gradients"] + memory.fixed["text_embeddings"]


def test_memory_is_that_of_a_real_update(disk) -> None:
    values = disk.distillation(micro_batch_size=8)
    # One teacher for all: the plan means a micro-batch in which all rows ask the same one.
    values["teachers"] = [{**values["teachers"][1], "tasks": ["shapes", "signs"]}]
    plan = planned(from_values(values, DistillSettings))
    for checkpointing in (False, True):
        settings = from_values(
            {**values, "compute": {"gradient_checkpointing": checkpointing}}, DistillSettings
        )
        assert allocated(plan, checkpointing) == pytest.approx(real_round(settings, disk).peak(), rel=0.05)


def test_memory_of_grpo_is_that_of_a_real_update(disk) -> None:
    settings = from_values(disk.grpo(micro_batch_size=8), TeacherSettings)
    assert allocated(planned(settings), False) == pytest.approx(real_round(settings, disk).peak(), rel=0.10)


def test_flux_is_planned_too(disk, flux_base: Path) -> None:
    """Packed latents, rotary positions, an embedded guidance: what the backbone does is what is counted."""
    base = {"path": str(flux_base), "max_sequence_length": 6, "embedded_guidance": 3.5, "resolution": 16}
    settings = from_values(disk.grpo(base=base, micro_batch_size=8), TeacherSettings)
    plan, real = planned(settings), real_round(settings, disk)
    assert plan.base["text_tokens"] == 6
    assert sum(plan.flops.values()) == pytest.approx(real.flops(), rel=1e-6)
    assert allocated(plan, False) == pytest.approx(real.peak(), rel=0.10)


def test_memory_is_proportional_to_the_micro_batch(disk) -> None:
    """So the largest micro-batch that fits can be told from one reading."""
    read = []
    for rows in (4, 32):
        values = disk.distillation(prompts_per_round=32, micro_batch_size=rows)
        read.append(planned(from_values(values, DistillSettings)).memory)
    for few, many in zip(read[0].values(), read[1].values(), strict=True):
        assert many.kept + many.working == pytest.approx(8 * (few.kept + few.working), rel=0.02)
