"""The true Stable Diffusion 3.5 Medium as shapes: its adapters, one update's graph, the plan's numbers."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from formulas import Sizes, forward_flops
from rich.console import Console

from flow_opd.config.common import ATTENTION_PROJECTIONS, LoraSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import read
from flow_opd.config.options import PlanSettings
from flow_opd.method.policy import Policy
from flow_opd.planning.architectures import read_architecture
from flow_opd.planning.machines import GIB
from flow_opd.planning.plan import Plan
from flow_opd.planning.shapes import ShapeModel, build_model
from flow_opd.planning.table import plan_view
from flow_opd.stages.plan import plan_training
from flow_opd.types import Prompt

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

WIDTH, LAYERS, DUAL = 1536, 24, 13
IMAGE = (512 // 8 // 2) ** 2  # tokens: 8 pixels a latent, 2 x 2 latents a token
TEXT = 77 + 128  # tokens: CLIP's, then T5's
SIZES = Sizes(
    width=WIDTH, layers=LAYERS, image=IMAGE, text=TEXT, joint=4096, pooled=2048, channels=16, dual=DUAL
)
ROWS = 2


def settings() -> DistillSettings:
    return read(ROOT / "configs" / "sd35m-opd-24gb.yaml", DistillSettings, ["base.offline=true"])


@pytest.fixture(scope="module")
def model() -> ShapeModel:
    base = settings().base
    return build_model(read_architecture(base), base, {"student": LoraSettings()}, student="student")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_training(settings(), PlanSettings())


def test_the_documentation_shows_this_plan(plan: Plan) -> None:
    output = StringIO()
    console = Console(file=output, width=100, highlight=False)
    console.print(plan_view(plan))
    shown = [line.rstrip() for line in output.getvalue().strip().splitlines()]
    page = (ROOT / "docs" / "planning.md").read_text()
    block = page.split("$ flow-opd plan configs/sd35m-opd-24gb.yaml\n")[1].split("\n```")[0]
    assert [line.rstrip() for line in block.splitlines()] == shown


def test_the_guide_says_what_a_student_without_guidance_saves(plan: Plan) -> None:
    """One forward pass in place of two for all that the student does; its teachers stay guided."""
    folded = read(ROOT / "configs" / "sd35m-opd-folded.yaml", DistillSettings)
    assert folded.sampling.guidance_scale == 1.0
    assert {each.guidance_scale for each in (*folded.teachers, folded.anchor) if each} == {4.5}
    total = sum(plan.flops.values())
    less = total - sum(plan.flops[part] for part in ("student_forward", "student_backward", "recompute")) / 2
    guide = (ROOT / "docs" / "guides" / "one-card.md").read_text()
    assert f"{less / 1e12:,.0f} instead of {total / 1e12:,.0f} TFLOP" in guide
    assert f"{100 * (1 - less / total):.0f} % fewer FLOPs" in guide


def test_the_eight_targets_match_191_modules(model: ShapeModel) -> None:
    """Eight in each of 24 blocks, but for the last, whose text ends there: it has no to_add_out.

    The second attention of the 13 dual blocks, `attn2`, gets no adapter: 'attn.to_q' names the ending of a
    module, and '.attn2.to_q' does not end in '.attn.to_q'. Flow-GRPO's adapters are of the same form.
    """
    modules = {key.removesuffix(".lora_A.weight") for key in model.trained if "lora_A" in key}
    expected = {f"transformer_blocks.{i}.{target}" for i in range(LAYERS) for target in ATTENTION_PROJECTIONS}
    assert modules == expected - {f"transformer_blocks.{LAYERS - 1}.attn.to_add_out"}
    second = [name for name, _ in model.transformer.named_modules() if name.endswith("attn2.to_q.weight")]
    assert not second
    assert sum("attn2.to_q" in name for name, _ in model.transformer.named_parameters()) == 2 * DUAL


def test_one_update_has_the_expected_shapes(model: ShapeModel) -> None:
    seen: list[tuple[torch.Size, torch.Size]] = []

    def look(_: Any, args: Any, values: dict[str, Any], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        seen.append((values["encoder_hidden_states"].shape, values["hidden_states"].shape))

    hooks = [
        block.register_forward_hook(look, with_kwargs=True) for block in model.transformer.transformer_blocks
    ]
    student = Policy(model.backbone, adapters=model.adapters, adapter="student", guidance_scale=4.5)
    conditioning = model.backbone.encode_prompts([Prompt("", "any")] * ROWS)
    assert conditioning.embeds.shape == (ROWS, TEXT, 4096)
    assert conditioning.pooled.shape == (ROWS, 2048)
    velocity = student.velocity(torch.zeros(ROWS, 16, 64, 64), torch.ones(ROWS), conditioning)
    for hook in hooks:
        hook.remove()
    assert velocity.shape == (ROWS, 16, 64, 64)
    assert velocity.dtype == torch.float32
    assert seen == [((2 * ROWS, TEXT, WIDTH), (2 * ROWS, IMAGE, WIDTH))] * LAYERS  # guidance doubles the rows
    for parameter in model.trained.values():
        parameter.grad = None
    velocity.sum().backward()
    for name, parameter in model.trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == ((32, WIDTH) if "lora_A" in name else (WIDTH, 32))
        assert parameter.grad.dtype == torch.float32
    frozen = [one for name, one in model.transformer.named_parameters() if "lora_" not in name]
    assert all(one.grad is None and one.dtype == torch.float16 for one in frozen)


def test_parameters(plan: Plan) -> None:
    assert 2.2e9 < plan.parameters.transformer < 2.5e9
    assert plan.parameters.adapters["student"] == 191 * 2 * 32 * WIDTH == 18_776_064
    assert set(plan.parameters.adapters) == {"composition", "text", "preference", "quality", "student"}


def test_flops_are_those_of_pencil_and_paper(plan: Plan) -> None:
    forward = 2 * forward_flops(SIZES, 32)  # guidance
    assert forward == 4_493_737_623_552
    rows = 128 * 10
    for part in ("student_forward", "teacher"):
        assert plan.flops[part] == rows * forward
    quality = 5.67 / (17 + 3 * 5.67)  # of the rows have the anchor as their teacher; the others ask an eighth
    assert plan.flops["anchor"] == pytest.approx(rows * forward * (1 - quality) / 8)
    # Backward: as much again for the inputs of all layers, some more for attention and the LoRA's factors.
    assert 1.1 < plan.flops["student_backward"] / plan.flops["student_forward"] < 1.3


def test_one_base_and_many_adapters(plan: Plan) -> None:
    fixed = plan.memory[True].fixed
    lora = 4 * plan.parameters.adapters["student"]
    assert fixed["base"] == 2 * plan.parameters.transformer  # float16
    assert fixed["frozen_adapters"] == 4 * lora  # the anchor is the fourth teacher
    student = ("student_adapter", "gradients", "optimizer", "moving_average")
    assert sum(fixed[part] for part in student) == 5 * lora
    assert sum(fixed.values()) < 5.5 * GIB  # a fifth of one is what prompts of a round take
    assert plan.naive_memory > 80 * GIB


def test_checkpointing_is_what_makes_it_fit_24_gib(plan: Plan) -> None:
    assert plan.memory[False].total / GIB == pytest.approx(42.92, abs=0.01)
    assert plan.memory[True].total / GIB == pytest.approx(10.11, abs=0.01)
    card = next(one for one in plan.verdicts if one.card == "RTX 4090")
    assert card.fits
    assert card.largest_micro_batch == 3
    assert card.largest_micro_batch_with_checkpointing == 29
    assert next(one for one in plan.verdicts if one.card == "H100 SXM").fits
