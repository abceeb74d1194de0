"""Parts by name: what code becomes, which settings it has, and what is refused before anything is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import flow_opd
from errors import refused
from flow_opd.config import kinds
from flow_opd.config.common import BackboneSettings
from flow_opd.config.distill import DistillConfig
from flow_opd.config.file.keys import describe
from flow_opd.config.file.reader import from_values, to_yaml
from flow_opd.config.json_schema import json_schema
from flow_opd.config.merge import MergeMethodSettings
from flow_opd.config.objectives import ObjectiveSettings
from flow_opd.config.parts import Part
from flow_opd.config.rewards import RewardSettings
from flow_opd.config.sampling import DynamicsSettings
from flow_opd.config.state_weights import StateWeightsSettings
from flow_opd.config.teachers import RouterSettings
from flow_opd.config.versions import code_versions, parts_of
from flow_opd.errors import ConfigError, RewardError
from flow_opd.flow.dynamics import ode_step, sde_step
from flow_opd.types import Prompt

KINDS = (
    *(RewardSettings, ObjectiveSettings, RouterSettings, MergeMethodSettings),
    *(DynamicsSettings, StateWeightsSettings, BackboneSettings),
)
CODE = '''
"""Parts of somebody else."""
import dataclasses, functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
import torch
from pydantic import Field
from flow_opd.config.objectives import ObjectiveSettings
from flow_opd.types import RewardScores

NUMBER = 3

def huber(student, target, batch, *, delta: Annotated[float, Field(gt=0)] = 1.0, tags: tuple[str, ...] = ()):
    """A distance.

    Args:
        delta: where it becomes linear,
            in both directions.
    """
    return torch.nn.functional.huber_loss(student, target, reduction="none", delta=delta).flatten(1).mean(1)

def red(images, prompts):
    return images[:, 0].mean(dim=(1, 2))

class Bright:
    name, scale = "bright", (0.0, 1.0)
    def __init__(self, gain: float, *, device: str = "nowhere") -> None:
        self.gain, self.device = gain, device
    def score(self, images, prompts):
        values = self.gain * images.mean(dim=(1, 2, 3))
        return RewardScores(self.name, values, torch.ones(len(prompts), dtype=torch.bool), self.scale)

class Halves:
    def __init__(self, teacher_of_task, first: float = 0.5) -> None:
        self.teachers = tuple(dict.fromkeys(teacher_of_task.values()))
        self.first = first
    def weights(self, conditioning):
        return torch.tensor([self.first, 1 - self.first]).expand(len(conditioning.tasks), 2)

class Twice(ObjectiveSettings):
    delta: float = 0.5
    def updates(self) -> int:
        return 2
    def build(self, policies, walks):
        return "source", self.delta

def still(latents, velocity, sigma, sigma_next, noise_level):
    raise NotImplementedError

def early(schedule, dynamics, *, power: int = 2):
    return schedule.sigmas[:-1] ** power

def first(parts, weights, generator):
    return parts[0]

def needs(student, target, batch, *, delta: float): ...
def taken(student, target, batch, *, build: float = 1.0): ...
def called(student, target, batch, *, by: Callable = print): ...
bound = functools.partial(huber, delta=3.0)
def made_elsewhere(): ...
class Own(ObjectiveSettings):
    name: Literal["mine"] = "mine"
    def build(self, policies, walks): ...
class Builds(ObjectiveSettings):
    """Nothing."""
class Ocr(Bright):
    name = "ocr"
class Average(Bright):
    name = "average"
class Strict(Bright):
    name = "geneval_strict"
class Short(Bright):
    def score(self, images, prompts):
        return RewardScores(self.name, torch.zeros(1), torch.ones(1, dtype=torch.bool), self.scale)
@dataclasses.dataclass
class Listed:
    words: list[str] = dataclasses.field(default_factory=lambda: ["a"])
    where: Path = Path("here")
    far: float = float("inf")
    name = "listed"
    scale = (0.0, 1.0)
    def score(self, images, prompts): ...
def untyped(student, target, batch, *, delta=1.0): ...
def strange(student, target, batch, *, device: torch.device | None = None): ...
def weighted(images, prompts, *, weight: float = 1.0): ...
def lonely(images): ...
class Wordless:
    def __init__(self) -> None: ...
'''

TYPED = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from flow_opd.types import TransitionBatch
    from nowhere import Number

def good(student: Tensor, target: Tensor, batch: TransitionBatch, *, delta: float = 2.0): ...
def bad(student, target, batch, *, delta: Number = 2.0): ...
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module somewhere on the path, with parts of every kind."""
    file = tmp_path / "somebody_elses.py"
    file.write_text(CODE)
    (tmp_path / "broken_part.py").write_text("import no_such_package_anywhere\n")
    (tmp_path / "rude_part.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "wrong_part.py").write_text("import math\nmath.no_such_thing\n")
    (tmp_path / "typed_part.py").write_text(TYPED)
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    for name in ("somebody_elses", "broken_part", "typed_part"):
        sys.modules.pop(name, None)


def distill(**values: Any) -> DistillConfig:
    return from_values(values, DistillConfig)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_ours_can_be_named(kind: type[Part]) -> None:
    for name in kind.kind.own:
        model = kind.chosen(name)
        assert issubclass(model, kind)
        assert name in str(model.model_fields["name"].annotation)
        assert model.__doc__


def test_a_function_is_a_part_with_its_keyword_parameters_as_settings() -> None:
    config = distill(objective={"name": "somebody_elses:huber", "delta": 0.25})
    assert dict(config.objective) == {"name": "somebody_elses:huber", "delta": 0.25, "tags": ()}
    same = distill(objective="somebody_elses:huber")
    assert same.objective != config.objective
    made = config.objective.made()
    student, target = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    assert made(student, target, None).tolist() == pytest.approx([0.25 * (1 - 0.125)] * 2)
    assert made.__name__ == "huber"


def test_what_is_written_is_read_again() -> None:
    config = distill(
        objective={"name": "somebody_elses:huber", "delta": 0.25, "tags": ["a", "b"]},
        state_weights="somebody_elses:early",
        sampling={"dynamics": "cps", "stochastic_steps": [0, 5]},
    )
    text = to_yaml(config)
    assert "dynamics: cps\n" in text  # a word where there is nothing to set
    assert "  delta: 0.25\n" in text
    again = DistillConfig.model_validate_json(config.model_dump_json())
    assert again == config


def test_a_class_is_a_part_with_its_parameters_as_settings_and_what_the_run_gives() -> None:
    images, prompts = torch.full((2, 3, 4, 4), 0.5), [Prompt("a", ""), Prompt("b", "")]
    bright = flow_opd.load_reward("somebody_elses:Bright", {"gain": 0.5})
    assert bright.score(images, prompts).values.tolist() == [0.25, 0.25]
    assert bright.device == "cpu"  # type: ignore[attr-defined]
    red = flow_opd.load_reward("somebody_elses:red")
    assert (red.name, red.score(images, prompts).values.tolist()) == ("red", [0.5, 0.5])


def test_routers_weights_dynamics_and_merges() -> None:
    router = RouterSettings.of("somebody_elses:Halves", {"first": 0.25}).build({"a": "x", "b": "y"})
    assert router.teachers == ("x", "y")
    weights = StateWeightsSettings.of("somebody_elses:early", {"power": 1}).build(0.7)
    schedule = flow_opd_schedule()
    assert weights(schedule, sde_step).tolist() == schedule.sigmas[:-1].tolist()
    assert DynamicsSettings.of("somebody_elses:still").build().__name__ == "still"
    method = MergeMethodSettings.of("somebody_elses:first", {"rank": 3}).build()
    assert (method.rank, method.combine(["p", "q"], (1.0, 1.0), torch.Generator())) == (3, "p")  # type: ignore[list-item]


def flow_opd_schedule() -> Any:
    from flow_opd.flow.path import make_schedule

    return make_schedule(torch.tensor([1.0, 0.5, 0.0]), noise_level=0.7, stochastic_steps=(0, 1))


def test_settings_that_somebody_wrote_decide_themselves() -> None:
    config = distill(objective={"name": "somebody_elses:Twice", "delta": 2.0})
    assert config.updates_per_round() == 2
    assert config.objective.build(None, None) == ("source", 2.0)  # type: ignore[arg-type, comparison-overlap]
    with refused(ConfigError, value=3, names=["'dleta'", "'delta'"]):
        distill(objective={"name": "somebody_elses:Twice", "dleta": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("direkt-kl", "direkt-kl"),
        ("somebody_elses", "somebody_elses"),
        ("../evil.py:run", "../evil.py:run"),
        ("somebody_elses:hubert", "somebody_elses:hubert"),
        ("somebody_elses:NUMBER", "somebody_elses:NUMBER"),
        ("broken_part:huber", "broken_part:huber"),
        ("no_such_module_at_all:huber", "no_such_module_at_all:huber"),
        ("somebody_elses:untyped", "delta"),
        ("somebody_elses:lonely", "somebody_elses:lonely"),
        ("somebody_elses:Wordless", "somebody_elses:Wordless"),
        ("somebody_elses:bound", "somebody_elses:bound"),
        ("somebody_elses:taken", "build"),
        ("somebody_elses:Builds", "somebody_elses:Builds"),
        ("rude_part:huber", "rude_part:huber"),
        ("wrong_part:huber", "wrong_part:huber"),
        ("typed_part:bad", "delta"),
    ],
)
def test_a_name_that_leads_to_no_part(name: str, value: str) -> None:
    with refused(ConfigError, value=value):
        distill(objective=name)


def test_a_failing_import_says_why() -> None:
    with refused(ConfigError, names=["no_such_package_anywhere", "PYTHONPATH"]):
        distill(objective="broken_part:huber")


def test_a_parameter_of_a_type_that_no_file_can_hold() -> None:
    with refused(ConfigError, names=["somebody_elses:strange", "build"]):
        distill(objective="somebody_elses:strange")


def test_a_parameter_called_like_a_setting_of_all() -> None:
    with refused(ConfigError, value="weight", names=["somebody_elses:weighted"]):
        flow_opd.load_reward("somebody_elses:weighted")


@pytest.mark.parametrize("delta", [0, -1.0, "1", None, [1.0]])
def test_settings_of_others_are_as_strict_as_ours(delta: object) -> None:
    with refused(ConfigError, value=delta, names=["objective.delta"]):
        distill(objective={"name": "somebody_elses:huber", "delta": delta})
    with pytest.raises(ValidationError):
        ObjectiveSettings.of("somebody_elses:huber", {"delta": "x"})


def test_an_installed_part_has_a_name_of_its_own_and_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ObjectiveSettings.kind.group
    found = [
        EntryPoint("huber", "somebody_elses:huber", group),
        EntryPoint("direct-kl", "somebody_elses:huber", group),
        EntryPoint("unusable", "broken_part:huber", group),
    ]
    monkeypatch.setattr(kinds, "entry_points", lambda group: found if group == found[0].group else [])
    assert ObjectiveSettings.kind.names()[-2:] == ["huber", "unusable"]
    assert distill(objective={"name": "huber", "delta": 2}).objective.made().__name__ == "huber"
    assert distill(objective="direct-kl").objective.code is None  # ours
    keys = {key.key: key for key in describe(DistillConfig)}
    assert keys["objective(huber).delta"].help == "where it becomes linear, in both directions."
    assert (keys["objective(huber).delta"].type, keys["objective(huber).delta"].default) == ("number", "1.0")
    assert "no_such_package_anywhere" in keys["objective(unusable)"].help  # and the list goes on
    assert "sampling.num_steps" in keys


def test_parts_that_a_file_names_are_listed_too() -> None:
    config = distill(objective="somebody_elses:huber")
    keys = {key.key for key in describe(DistillConfig, also=list(parts_of(config)))}
    assert "objective(somebody_elses:huber).delta" in keys


def test_controls_can_be_named_and_are_not_offered() -> None:
    assert distill(objective="detached-state-kl").updates_per_round() == 1
    listed = " ".join(f"{key.key} {key.type} {key.help}" for key in describe(DistillConfig))
    assert "detached" not in listed
    assert "factor-average" not in MergeMethodSettings.kind.names()


def test_code_of_others_is_known_by_its_version_and_source(module: Path) -> None:
    config = distill(objective="somebody_elses:huber")
    before = code_versions(config)
    assert list(before) == ["objective somebody_elses:huber"]
    assert code_versions(distill(objective="direct-kl")) == {}
    module.write_text(CODE.replace("flatten(1).mean(1)", "flatten(1).sum(1)"))
    assert code_versions(config) != before


def test_python_takes_the_same_words() -> None:
    sampling = flow_opd.SamplingSettings(dynamics="ode")  # type: ignore[arg-type]
    assert sampling.dynamics.build() is ode_step
    config = flow_opd.DistillConfig(sampling=sampling, objective="somebody_elses:huber")  # type: ignore[arg-type]
    assert config.objective.name == "somebody_elses:huber"


def test_a_setting_may_be_required_and_other_types_may_be_unknown() -> None:
    assert distill(objective={"name": "somebody_elses:needs", "delta": 2}).objective.parameters == ("delta",)
    with refused(ConfigError, names=["objective.delta"]):
        distill(objective="somebody_elses:needs")
    assert distill(objective="typed_part:good").objective.parameters == ("delta",)


def test_settings_with_a_name_of_their_own_go_by_the_name_that_is_used() -> None:
    assert distill(objective="somebody_elses:Own").objective.name == "somebody_elses:Own"
    ours = distill(objective="flow_opd.config.objectives:DirectKLSettings").objective
    assert ours.build.__func__ is ObjectiveSettings.chosen("direct-kl").build


def test_defaults_are_what_the_code_says() -> None:
    settings = RewardSettings.of("somebody_elses:Listed")
    assert (settings.words, settings.where, settings.far) == (["a"], Path("here"), float("inf"))  # type: ignore[attr-defined]
    built = settings.build()
    built.words.append("b")  # type: ignore[attr-defined]
    assert settings.build().words == ["a"]  # type: ignore[attr-defined]
    with refused(ConfigError, names=["somebody_elses:called"]):
        distill(objective="somebody_elses:called")


def test_a_reward_has_a_name_of_its_own() -> None:
    for code, name in (("Ocr", "ocr"), ("Average", "average"), ("Strict", "geneval_strict")):
        with refused(ConfigError, value=name, names=["geneval"]):
            flow_opd.load_reward(f"somebody_elses:{code}", {"gain": 1.0})


def test_an_evaluation_needs_a_score_for_each_image() -> None:
    short = flow_opd.load_reward("somebody_elses:Short", {"gain": 1.0})
    with refused(RewardError, value=[0.0], names=["bright", "2 finite numbers"]):
        flow_opd.evaluate(flow_opd.load_base("asset:base"), {"base": None}, ["a", "b"], [short], num_steps=1)


def test_two_packages_with_one_name_are_told_apart_by_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ObjectiveSettings.kind.group
    found = [EntryPoint("huber", place, group) for place in ("somebody_elses:huber", "typed_part:good")]
    monkeypatch.setattr(kinds, "entry_points", lambda group: found if group == found[0].group else [])
    with refused(ConfigError, value="huber", names=["somebody_elses:huber", "typed_part:good"]):
        distill(objective="huber")
    assert json_schema(DistillConfig, "distill")["properties"]["objective"]  # and it goes on


def test_the_module_that_is_named_counts_beside_the_one_that_defines(tmp_path: Path) -> None:
    (tmp_path / "elsewhere_parts.py").write_text("from somebody_elses import huber\n")
    config = distill(objective="elsewhere_parts:huber", state_weights="somebody_elses:early")
    before = code_versions(config)
    assert list(before) == ["objective elsewhere_parts:huber", "state weights somebody_elses:early"]
    (tmp_path / "elsewhere_parts.py").write_text("from somebody_elses import huber  # changed\n")
    after = code_versions(config)
    assert before["objective elsewhere_parts:huber"] != after["objective elsewhere_parts:huber"]
    sys.modules.pop("elsewhere_parts")
