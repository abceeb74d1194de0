"""The section `compute` and the new keys of `base` reach what a stage builds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from errors import refused
from flow_opd.backbones import loading
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.config.distill import DistillConfig, DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.reader import from_values, read
from flow_opd.config.locations import asset_folder
from flow_opd.config.options import GenerateSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import ConfigError
from flow_opd.processes import Processes
from flow_opd.runs.identity import training_identity
from flow_opd.runs.launch import check_shares
from flow_opd.stages import distill, evaluate, generate, teacher

CONFIGS = asset_folder() / "configs"


def distillation(out: Path, *overrides: str) -> DistillSettings:
    short = [
        "run.rounds=1",
        "prompts_per_round=4",
        "sampling.num_steps=2",
        "sampling.stochastic_steps=[0, 0]",
    ]
    return read(CONFIGS / "distill.yaml", DistillSettings, [f"run.out={out}", *short, *overrides])


def stages(out: Path, *overrides: str) -> dict[str, Callable[[], Path]]:
    """Returns a stage by its name, ready to run for seconds at most."""
    place = [f"run.out={out}", *overrides]
    walk = ["sampling.num_steps=2", "sampling.stochastic_steps=[0, 0]", "steps_per_round=1"]
    round_ = ["run.rounds=1", "group_size=2", "groups_per_round=1", "updates_per_round=1"]
    specialist = (CONFIGS / "teachers" / "composition.yaml", TeacherSettings, [*place, *walk, *round_])
    sheet = "domains={quality: {path: asset:prompts/test/quality.jsonl, limit: 1}}"
    alone = ["rows={base: {guidance_scale: 1.0}}", "roles={base: base}", "grid_prompts=0", "num_steps=1"]
    table = (CONFIGS / "evaluate.yaml", EvaluateSettings, [*place, sheet, *alone])
    drawing = {
        "run": {"out": str(out)},
        "base": {"path": "asset:base", "max_sequence_length": 0},
        "prompts": ["a red circle"],
        "num_steps": 1,
    }
    return {
        "distill": lambda: distill.run(distillation(out, *overrides), resume=False),
        "teacher": lambda: teacher.run(read(*specialist), resume=False),
        "evaluate": lambda: evaluate.run(read(*table), resume=False),
        "generate": lambda: generate.run(from_values(drawing, GenerateSettings, overrides)),
    }


@pytest.mark.parametrize("stage", ["distill", "teacher", "evaluate", "generate"])
def test_a_device_that_is_not_here_is_refused_by_every_stage(tmp_path: Path, stage: str) -> None:
    with refused(ConfigError, value="cuda:17", names=["compute.device"]):
        stages(tmp_path / "run", "compute.device=cuda:17")[stage]()
    assert not (tmp_path / "run").exists()


def test_a_size_that_the_base_cannot_draw_is_refused_by_a_stage(tmp_path: Path) -> None:
    with refused(ConfigError, value=48, names=["base.resolution"]):
        stages(tmp_path / "run", "base.resolution=48")["generate"]()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_memory_settings_change_nothing_that_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guided = ["sampling.guidance_scale=2.0", "anchor.guidance_scale=2.0"]
    distill.run(distillation(tmp_path / "plain", *guided), resume=False)
    seen: dict[str, Any] = {True: set(), False: set()}  # with gradients? -> rows of the passes
    build = loading.load_backbone

    def watched(base: BaseModelSettings, compute: ComputeSettings) -> Any:
        seen["base"] = backbone = build(base, compute)
        backbone.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: seen[torch.is_grad_enabled()].add(len(kwargs["hidden_states"])),
            with_kwargs=True,
        )
        return backbone

    monkeypatch.setattr(loading, "load_backbone", watched)
    frugal = ["compute.gradient_checkpointing=true", "compute.guidance_batching=sequential"]
    distill.run(distillation(tmp_path / "frugal", *guided, *frugal), resume=False)
    assert seen["base"].pipe.transformer.is_gradient_checkpointing
    # The prompts of the round, and for each its teacher and the base, of which its target is made, and for
    # one the anchor; never both halves of guidance.
    assert (max(seen[True]), max(seen[False])) == (4, 9)
    plain, other = (
        load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("plain", "frugal")
    )
    start = load_file(tmp_path / "plain/cold_start/adapter_model.safetensors")
    assert max((plain[key] - start[key]).abs().max() for key in start) > 1e-4  # it has moved
    for key in plain:
        torch.testing.assert_close(other[key], plain[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("total", "count", "updates", "collective", "message"),
    [
        (8, 2, 4, True, None),
        (10, 3, 3, False, None),
        (10, 3, 3, True, "10 trajectories in 3 updates.*a multiple of 9"),
        (8, 3, 3, False, "more processes than trajectories"),
    ],
)
def test_every_process_needs_its_share(
    total: int, count: int, updates: int, collective: bool, message: str | None
) -> None:
    processes = Processes(0, count)
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check_shares(total, processes, key="prompts_per_round", collective=collective, updates=updates)


def test_what_computes_a_run_is_no_part_of_its_identity(tmp_path: Path) -> None:
    def identity(*overrides: str) -> str:
        settings = distillation(tmp_path, *overrides)
        return training_identity("distill", settings, DistillConfig.model_fields, settings.base, {})

    assert identity() == identity(
        "compute.guidance_batching=sequential", "base.offline=true", "micro_batch_size=1"
    )
    for other in ("base.dtype=bfloat16", "base.resolution=16", "base.t5=false", "state_weights=x0"):
        assert identity(other) != identity(), other
