"""Every configuration in configs/ reads as its stage, and its adapters fit the true shapes of its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from flow_opd.adapters.lora import targeted_linears
from flow_opd.config.base import Settings
from flow_opd.config.common import BaseModelSettings, LoraSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.reader import dump, read
from flow_opd.config.merge import MergeSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.planning.architectures import read_architecture
from flow_opd.planning.job import distill_job, teacher_job
from flow_opd.planning.shapes import build_network

FOLDER = Path(__file__).parents[2] / "configs"
PARTS = {"flux1dev-base.yaml", "sd35m-base.yaml"}  # only ever extended
MODELS: dict[str, type[Settings]] = {
    "flux1dev-evaluate.yaml": EvaluateSettings,
    "flux1dev-opd.yaml": DistillSettings,
    "flux1dev-teacher-composition.yaml": TeacherSettings,
    "flux1dev-teacher-text.yaml": TeacherSettings,
    "sd35m-evaluate.yaml": EvaluateSettings,
    "sd35m-grpo-mix.yaml": TeacherSettings,
    "sd35m-grpo-mix-from-merge.yaml": TeacherSettings,
    "sd35m-grpo-mix-from-sft.yaml": TeacherSettings,
    "sd35m-grpo-mix-from-student.yaml": TeacherSettings,
    "sd35m-merge.yaml": MergeSettings,
    "sd35m-opd.yaml": DistillSettings,
    "sd35m-opd-24gb.yaml": DistillSettings,
    "sd35m-opd-8gpu.yaml": DistillSettings,
    "sd35m-opd-folded.yaml": DistillSettings,
    "sd35m-opd-nodes.yaml": DistillSettings,
    "sd35m-sft.yaml": SFTSettings,
    "sd35m-teacher-composition.yaml": TeacherSettings,
    "sd35m-teacher-preference.yaml": TeacherSettings,
    "sd35m-teacher-text.yaml": TeacherSettings,
}
TESTS = tuple(
    f"data/prompts/{name}" for name in ("composition-test.jsonl", "text-test.jsonl", "preference-test.txt")
)
MODULES = {"stabilityai/stable-diffusion-3.5-medium": 191, "black-forest-labs/FLUX.1-dev": 266}
PARAMETERS = {"stabilityai/stable-diffusion-3.5-medium": 2.243e9, "black-forest-labs/FLUX.1-dev": 11.9e9}


def test_no_configuration_is_left_out() -> None:
    assert {file.name for file in FOLDER.glob("*.yaml")} - PARTS == set(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_reads_and_its_resolved_form_reads_the_same(name: str, tmp_path: Path) -> None:
    settings = read(FOLDER / name, MODELS[name])
    dump(settings, tmp_path / "config.yaml")
    assert read(tmp_path / "config.yaml", MODELS[name]) == settings


@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_prompt_comes_twice_and_no_test_prompt_is_trained_on(name: str) -> None:
    settings = read(FOLDER / name, MODELS[name])
    tests = {Path(file).stem.removesuffix("-test"): file for file in TESTS}
    for file in getattr(settings, "prompts", ()):
        assert file.unique
        assert list(file.disjoint_from) == [
            each for stem, each in tests.items() if stem == Path(file.path).stem.split("-")[0]
        ]
    for domain in getattr(settings, "domains", {}).values():
        assert domain.path in TESTS


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("sd35m-opd")])
def test_the_update_is_the_same_on_any_number_of_cards(name: str) -> None:
    settings = read(FOLDER / name, DistillSettings)
    assert (settings.prompts_per_round, settings.optimizer.learning_rate) == (128, 1e-4)
    shares = settings.task_shares or {}
    composition = sum(share for task, share in shares.items() if task.startswith("composition-"))
    assert composition / shares["text"] == pytest.approx(3, rel=0.001)
    assert shares["text"] == shares["preference"] == shares["quality"]


@pytest.mark.parametrize(
    "name", [name for name in MODELS if any(each in name for each in ("-opd", "-mix", "teacher-composition"))]
)
def test_composition_has_the_published_mixture_of_tags(name: str) -> None:
    shares = read(FOLDER / name, MODELS[name]).task_shares  # type: ignore[attr-defined]
    tags = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
    assert {task: share for task, share in shares.items() if "-" in task} == {
        f"composition-{tag}": share for tag, share in tags.items()
    }


def loras_of(settings: Settings) -> dict[str, LoraSettings]:
    if isinstance(settings, DistillSettings):
        return dict(distill_job(settings, student="student", anchor="anchor").loras)
    if isinstance(settings, TeacherSettings):
        return dict(teacher_job(settings, student="student").loras)
    assert isinstance(settings, SFTSettings)
    return {"student": settings.lora}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name, model in MODELS.items() if model in (DistillSettings, TeacherSettings, SFTSettings)],
)
def test_its_adapters_fit_the_shapes_of_its_base(name: str) -> None:
    settings = read(FOLDER / name, MODELS[name])
    assert isinstance(settings, DistillSettings | TeacherSettings | SFTSettings)
    base: BaseModelSettings = settings.base
    network = read_architecture(base).networks["transformer"]
    transformer = build_network(network)
    size = sum(parameter.numel() for parameter in transformer.parameters())
    assert size == pytest.approx(PARAMETERS[base.path], rel=0.02)
    modules = dict(transformer.named_modules())
    for lora in loras_of(settings).values():
        assert len(targeted_linears(modules, lora)) == MODULES[base.path]
    patches = 8 * network.config.get("patch_size", 1)
    assert base.resolution is not None
    assert base.resolution % patches == 0
