"""Every configuration that the package ships reads as the settings of its stage."""

from __future__ import annotations

import pytest

from flow_opd.config.base import Settings
from flow_opd.config.demo import DemoSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.reader import dump, read
from flow_opd.config.locations import asset_folder
from flow_opd.config.merge import MergeSettings
from flow_opd.config.miniature import MiniaturePromptsSettings, MiniatureSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings

FOLDER = asset_folder() / "configs"
PARTS = {"base.yaml", "domains.yaml", "teachers/common.yaml"}  # only ever extended
MODELS: dict[str, type[Settings]] = {
    "build.yaml": MiniatureSettings,
    "demo.yaml": DemoSettings,
    "distill.yaml": DistillSettings,
    "evaluate.yaml": EvaluateSettings,
    "folded.yaml": DemoSettings,
    "grpo-mix.yaml": TeacherSettings,
    "grpo-mix-from-merge.yaml": TeacherSettings,
    "grpo-mix-from-sft.yaml": TeacherSettings,
    "grpo-mix-from-student.yaml": TeacherSettings,
    "merge.yaml": MergeSettings,
    "prompts.yaml": MiniaturePromptsSettings,
    "sft.yaml": SFTSettings,
    "table.yaml": DemoSettings,
    **{f"teachers/{name}.yaml": TeacherSettings for name in ("composition", "text", "preference", "quality")},
}


def test_no_configuration_is_left_out() -> None:
    found = {str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.yaml")}
    assert found - PARTS == set(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_reads_and_its_resolved_form_reads_the_same(name: str, tmp_path) -> None:
    settings = read(FOLDER / name, MODELS[name])
    dump(settings, tmp_path / "config.yaml")
    assert read(tmp_path / "config.yaml", MODELS[name]) == settings
