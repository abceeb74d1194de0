"""`flow-opd plan` from outside: tables, JSON, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from errors import refused
from flow_opd.cli import app
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import from_values
from flow_opd.config.locations import asset_folder
from flow_opd.config.options import PlanSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import ConfigError
from flow_opd.stages.plan import plan_training, read_training

CARDS = ("A100 80GB", "A100 40GB", "H100 SXM", "H800 SXM", "RTX 4090")
FLOPS = {
    "rollout",
    "student_forward",
    "student_backward",
    "recompute",
    "teacher",
    "anchor",
    "reference",
    "decode",
    "rewards",
    "total",
}
MEMORY = {
    "base",
    "vae",
    "reward_models",
    "text_encoders",
    "frozen_adapters",
    "student_adapter",
    "gradients",
    "optimizer",
    "moving_average",
    "text_embeddings",
    "activations",
    "working_set",
    "total",
}


def call(*words: str) -> Any:
    return CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, ["plan", *words])


@pytest.fixture
def config(disk, tmp_path: Path) -> Path:
    file = tmp_path / "distill.yaml"
    file.write_text(yaml.safe_dump({"stage": "distill", **disk.distillation()}))
    return file


@pytest.mark.slow
def test_json_is_whole_and_stable(config: Path) -> None:
    result = call(str(config), "--json", "--utilisation", "0.5", "--processes", "2")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert list(plan) == [
        "schema",
        "kind",
        "base",
        "parameters",
        "update",
        "memory",
        "flops",
        "embedding_bytes_per_prompt",
        "utilisation",
        "machines",
        "notes",
    ]
    assert (plan["schema"], plan["kind"], plan["utilisation"]) == (2, "distill", 0.5)
    assert set(plan["flops"]["update"]) == set(plan["flops"]["naive_update"]) == FLOPS
    assert plan["flops"]["update"]["rewards"] == 0
    assert plan["flops"]["naive_update"]["rewards"] is None
    assert set(plan["memory"]["with_checkpointing"]) == set(plan["memory"]["without_checkpointing"]) == MEMORY
    for memory in (plan["memory"]["with_checkpointing"], plan["memory"]["without_checkpointing"]):
        assert memory["total"] == sum(value for part, value in memory.items() if part != "total")
    assert plan["memory"]["configured"] == "without_checkpointing"
    assert plan["update"]["processes"] == 2
    assert plan["update"]["trajectories"] == 4
    assert [machine["card"] for machine in plan["machines"]] == list(CARDS)
    card, seconds = plan["machines"][0], 3600 * plan["machines"][0]["gpu_hours"]
    assert seconds * 0.5 * card["bf16_tflops"] * 1e12 == pytest.approx(plan["flops"]["run"])
    assert plan["flops"]["run"] == pytest.approx(5 * plan["flops"]["update"]["total"])


@pytest.mark.slow
def test_tables_teach(disk, tmp_path: Path) -> None:
    file = tmp_path / "teacher.yaml"
    file.write_text(yaml.safe_dump({"stage": "teacher", **disk.grpo()}))
    result = call(str(file), "--set", "compute.gradient_checkpointing=true", "--processes", "2")
    assert result.exit_code == 0, result.output
    for part in (
        "Flow-GRPO teacher on",
        "forward and backward at 16 states on steps of earlier walks, beside 16 of the reference",
        "peak of the training",
        "student, computed again (checkpointing)",
        "VAE, for the reward's images",
        "decoding images",
        *CARDS,
        "Hours at 35 %",
    ):
        assert part in " ".join(result.stdout.split()), part


def test_the_file_says_its_stage() -> None:
    folder = asset_folder() / "configs"
    assert isinstance(read_training(folder / "distill.yaml"), DistillSettings)
    assert isinstance(read_training(folder / "teachers" / "text.yaml"), TeacherSettings)


@pytest.mark.parametrize("name", ["merge", "sft", "evaluate", "demo"])
def test_other_stages_are_refused(name: str) -> None:
    with refused(ConfigError, value=name, names=[f"flow-opd {name} ", "'distill' or 'teacher'"]):
        read_training(asset_folder() / "configs" / f"{name}.yaml")


def test_a_file_that_does_not_say_its_stage_is_no_guess(config: Path) -> None:
    config.write_text(config.read_text().replace("stage: distill\n", ""))
    with refused(ConfigError, value=None, names=["'stage: distill'"]):
        read_training(config)


def test_a_typo_elsewhere_is_found(config: Path) -> None:
    config.write_text(config.read_text().replace("teachers:", "teacher:"))
    with refused(ConfigError, names=["'teacher'", "'teachers'"]):
        read_training(config)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["asset:configs/evaluate.yaml"],
            ["settings of another stage", "'distill' or 'teacher'", "To fix: `flow-opd evaluate"],
        ),
        (["asset:configs/distil.yaml"], ["asset"]),
        (["absent.yaml"], ["absent.yaml"]),
        (["CONFIG", "--utilisation", "2"], ["'utilisation' in the command line: 2"]),
        (["CONFIG", "--processes", "0"], ["'processes' in the command line: 0"]),
        (
            ["CONFIG", "--set", "base.path=someone/unknown", "--set", "base.offline=true"],
            ["'someone/unknown'"],
        ),
        (["CONFIG", "--set", "teachers=[]"], ["'teachers'"]),
    ],
    ids=" ".join,
)
def test_mistakes_end_with_code_2(config: Path, words: list[str], parts: list[str]) -> None:
    result = call(*(str(config) if word == "CONFIG" else word for word in words))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr


def test_a_walk_that_would_train_one_step_is_refused_before_weights_are_loaded(disk) -> None:
    values = disk.distillation(sampling={"num_steps": 10, "dynamics": "cps", "guidance_scale": 3.0})
    with refused(ConfigError, value=0.0089):
        plan_training(from_values(values, DistillSettings), PlanSettings())
