"""FLOPs of a small transformer and bytes of its parts, worked out with pencil and paper."""

from __future__ import annotations

import pytest
from formulas import Sizes, forward_flops

from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import from_values
from flow_opd.config.options import PlanSettings
from flow_opd.planning.plan import Plan
from flow_opd.stages.plan import plan_training

pytestmark = pytest.mark.slow
# tiny.new_tiny_pipeline: 2 blocks, 2 heads of 8; latents [4, 4, 4] in patches of 2; prompts of 10 tokens.
SIZES = Sizes(width=16, layers=2, image=4, text=10, joint=16, pooled=16, channels=4)
RANK = 4  # of the student


@pytest.fixture(scope="module")
def plan(disk) -> Plan:
    return plan_training(from_values(disk.distillation(), DistillSettings), PlanSettings())


def test_student(plan: Plan) -> None:
    assert plan.flops["student_forward"] == 24 * 2 * forward_flops(
        SIZES, RANK
    )  # 8 prompts, 3 steps; guidance doubles it


def test_teachers_and_anchor(plan: Plan) -> None:
    assert plan.flops["teacher"] == 12 * forward_flops(SIZES, 2) + 12 * 2 * forward_flops(
        SIZES, 2
    )  # the second one is guided
    assert plan.flops["anchor"] == 24 * forward_flops(SIZES, 2)


def test_nothing_else(plan: Plan) -> None:
    assert {part for part, value in plan.flops.items() if value} == {
        "student_forward",
        "student_backward",
        "teacher",
        "anchor",
    }
    assert plan.naive_flops["rollout"] == plan.flops["student_forward"]
    assert plan.naive_flops["decode"] > 0


def test_adapters(plan: Plan) -> None:
    modules = 8 + 7  # the last block has no to_add_out
    factors = modules * 2 * SIZES.width  # numbers for each rank
    assert plan.parameters.adapted_modules == modules
    assert plan.parameters.adapters == {
        "a": 2 * factors,
        "b": 2 * factors,
        "anchor": 2 * factors,
        "student": RANK * factors,
    }
    fixed = plan.memory[False].fixed
    student = 4 * RANK * factors
    assert fixed["frozen_adapters"] == 3 * 4 * 2 * factors
    assert (fixed["student_adapter"], fixed["gradients"], fixed["moving_average"]) == (student,) * 3
    assert fixed["optimizer"] == 2 * student


def test_base_and_embeddings(plan: Plan, disk) -> None:
    fixed = plan.memory[False].fixed
    weights = (disk.base / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert fixed["base"] == pytest.approx(weights, rel=0.1)  # the file has a header
    assert fixed["base"] == 4 * plan.parameters.transformer
    assert fixed["vae"] == 0
    assert fixed["text_embeddings"] == 8 * 4 * (SIZES.text * SIZES.joint + SIZES.pooled)
    assert plan.bytes_per_prompt == 4 * (SIZES.text * SIZES.joint + SIZES.pooled)


def test_half_precision_halves_the_base_and_not_the_adapters(plan: Plan, disk) -> None:
    settings = from_values(disk.distillation(), DistillSettings, ["base.dtype=bfloat16"])
    half = plan_training(settings, PlanSettings()).memory[False].fixed
    full = plan.memory[False].fixed
    assert half["base"] == full["base"] // 2
    assert half["text_embeddings"] == full["text_embeddings"] // 2
    same = ("frozen_adapters", "student_adapter", "gradients", "optimizer", "moving_average")
    assert [half[part] for part in same] == [full[part] for part in same]


def test_processes_share_the_rows(plan: Plan, disk) -> None:
    settings = from_values(disk.distillation(), DistillSettings)
    shared = plan_training(settings, PlanSettings(processes=3))
    assert (shared.share.trajectories, shared.share.micro_batch_size) == (3, 3)  # 8 prompts: 3, 3 and 2
    assert shared.flops == pytest.approx(plan.flops)
    assert shared.memory[False].fixed["base"] == plan.memory[False].fixed["base"]
    assert shared.memory[False].kept == pytest.approx(plan.memory[False].kept * 3 / 4, rel=0.02)


def test_text_encoders_leave_only_for_a_cache_of_embeddings(plan: Plan, disk) -> None:
    positions = 8 * SIZES.text  # bytes; int64 ids of the positions are part of an encoder
    assert plan.parameters.text_encoders == {"text_encoder": 5664, "text_encoder_2": 5664}
    assert plan.memory[False].fixed["text_encoders"] == 2 * (4 * 5664 + positions)
    settings = from_values(disk.distillation(embeddings={}), DistillSettings)
    assert plan_training(settings, PlanSettings()).memory[False].fixed["text_encoders"] == 0


def test_the_naive_schedule_holds_a_pipeline_for_each_policy(plan: Plan) -> None:
    fixed, whole = plan.memory[False].fixed, plan.encoding
    assert whole == fixed["base"] + fixed["text_encoders"] + 4 * plan.parameters.vae
    extra = plan.naive_memory - plan.memory[False].total
    copies = len({"student", "a", "b", "anchor"})
    assert extra == copies * whole - fixed["base"] - fixed["text_encoders"]
