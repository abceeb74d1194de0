"""The settings models: every field explains itself, and fields that contradict each other are refused."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest

from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.keys import describe
from flow_opd.config.file.reader import from_values
from flow_opd.config.merge import MergeMethodSettings, MergeSettings
from flow_opd.config.objectives import ObjectiveSettings
from flow_opd.config.sampling import DynamicsSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.config.stages import STAGES, settings_of
from flow_opd.config.state_weights import CustomStateWeights, StateWeightsSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import ConfigError
from flow_opd.flow.advantages import NORMALIZATIONS

BASE = {"path": "asset:base", "max_sequence_length": 0}
DISTILL: dict[str, Any] = {
    "run": {"out": "x", "rounds": 3},
    "base": BASE,
    "teachers": [
        {"name": "composer", "tasks": ["composition"], "adapter": "a"},
        {"name": "writer", "tasks": ["text", "signs"], "adapter": "b"},
    ],
    "prompts": [{"path": "p.jsonl"}],
}
SFT: dict[str, Any] = {key: DISTILL[key] for key in ("run", "base", "teachers", "prompts")}
TEACHER: dict[str, Any] = {
    "run": {"out": "x", "rounds": 3},
    "base": BASE,
    "prompts": [{"path": "p.jsonl"}],
    "rewards": [{"name": "ocr"}],
}
EVALUATE: dict[str, Any] = {
    "run": {"out": "x"},
    "base": BASE,
    "rows": {"base": {}, "student": {"adapter": "s"}, "writer": {"adapter": "w", "domains": ["text"]}},
    "domains": {"text": {"path": "t.jsonl"}, "quality": {"path": "q.jsonl"}},
    "rewards": [{"name": "ocr"}, {"name": "deqa", "path": "asset:deqa"}],
}
MERGE: dict[str, Any] = {
    "run": {"out": "x"},
    "base": BASE,
    "adapters": [{"name": "a", "adapter": "a"}, {"name": "b", "adapter": "b"}],
}


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {**copy.deepcopy(values), **changes}


def refusal(model: Any, values: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_values(values, model, overrides)
    return str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_has_help(stage: str) -> None:
    keys = list(describe(settings_of(stage)))
    assert keys
    assert [key.key for key in keys if len(key.help) < 5] == []


def test_keys_tell_type_default_and_choice() -> None:
    keys = {key.key: key for key in describe(DistillSettings)}
    assert (keys["sampling.num_steps"].type, keys["sampling.num_steps"].default) == ("whole number", "10")
    assert keys["run.rounds"].default == "required"
    assert keys["anchor"].type == "section | null"
    assert keys["sampling.stochastic_steps"].type == "all-but-last | all | [whole number, whole number]"
    assert "objective(sampled-log-ratio).clip_range" in keys
    assert "objective(direct-kl).clip_range" not in keys


def test_words_agree_with_the_parts() -> None:
    for kind in (MergeMethodSettings, DynamicsSettings, StateWeightsSettings, ObjectiveSettings):
        for name in kind.kind.own:
            words = get_args(kind.chosen(name).model_fields["name"].annotation)
            assert name in words, (kind, name)
    words = TeacherSettings.model_fields["reward_normalization"].annotation.__args__  # type: ignore[union-attr]
    assert {*words} == {*NORMALIZATIONS}


@pytest.mark.parametrize(("objective", "share"), [("direct-kl", 0.125), ("sampled-log-ratio", 1.0)])
def test_an_anchor_is_asked_at_an_eighth_where_that_can_be(objective: str, share: float) -> None:
    values = {**DISTILL, "anchor": {"teacher": "writer"}, "objective": objective}
    settings = from_values(values, DistillSettings)
    assert settings.anchor is not None
    assert settings.anchor_share(settings.anchor) == share


def test_weights_of_states_are_a_word_or_a_section() -> None:
    assert from_values(DISTILL, DistillSettings).state_weights.name == "velocity"
    word = from_values(DISTILL, DistillSettings, ["state_weights=x0"])
    assert word.state_weights == StateWeightsSettings.of("x0")
    own = {"sampling": {"num_steps": 3}, "state_weights": {"name": "custom", "values": [1, 0.5, 0]}}
    settings = from_values(changed(DISTILL, own), DistillSettings)
    assert settings.state_weights == CustomStateWeights(name="custom", values=(1.0, 0.5, 0.0))
    assert settings.state_weights.weighted(3) == 2
    assert word.state_weights.weighted(10) == 10


def test_a_teacher_has_the_same_weights_of_states() -> None:
    assert from_values(TEACHER, TeacherSettings).state_weights.name == "transition"
    assert from_values(TEACHER, TeacherSettings, ["state_weights=velocity"]).state_weights.name == "velocity"
    own = {"name": "custom", "values": [0, 0.5, 1, 0]}  # 0 where nothing is trained
    values = {"sampling": {"num_steps": 4}, "trained_steps": [1, 2], "state_weights": own}
    settings = from_values(changed(TEACHER, values), TeacherSettings)
    assert settings.state_weights == CustomStateWeights(name="custom", values=(0.0, 0.5, 1.0, 0.0))


def test_a_trained_step_of_weight_zero_is_refused() -> None:
    values = {"sampling": {"num_steps": 4}, "trained_steps": [1, 2]}
    message = refusal(
        TeacherSettings, changed(TEACHER, values), "state_weights={name: custom, values: [0, 1, 0, 0]}"
    )
    assert "step 2 is trained and has no weight in --set state_weights: 0.0" in message
    assert "above 0 at the trained steps, 1 to 2" in message
    assert "leave the step out of trained_steps, or raise its weight" in message
    assert "problem" not in message, "the zeros at 0 and 3 are of steps that are not trained"


def test_distillation_reads() -> None:
    settings = from_values(changed(DISTILL, {"anchor": {"teacher": "writer"}}), DistillSettings)
    assert settings.teacher_of_task() == {"composition": "composer", "text": "writer", "signs": "writer"}
    assert settings.objective.name == "direct-kl"
    assert settings.sampling.stochastic_range() == (0, 9)


def test_objective_and_merge_are_words_or_sections() -> None:
    short = from_values(changed(DISTILL, {"objective": "sampled-log-ratio"}), DistillSettings)
    long = from_values(changed(DISTILL, {"objective": {"name": "sampled-log-ratio"}}), DistillSettings)
    assert short == long
    assert short.objective.name == "sampled-log-ratio"
    assert short.objective.clip_range == 1e-4
    message = refusal(DistillSettings, changed(DISTILL, {"objective": "direct-lk"}))
    assert "unknown objective in the command line: 'direct-lk'" in message
    assert "Did you mean 'direct-kl'?" in message
    message = refusal(
        DistillSettings, changed(DISTILL, {"objective": {"name": "direct-kl", "clip_range": 1}})
    )
    assert "unknown key 'clip_range'" in message  # an option that would do nothing


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["teachers.0.tasks=[]"], "teacher 'composer' has no tasks in --set teachers.0.tasks: []"),
        (["teachers.1.tasks=[composition]"], "task 'composition' has two teachers"),
        (["teachers.1.tasks=[text, text]"], "task 'text' has two teachers"),
        (["teachers.1.name=composer"], "two teachers with one name"),
        (["teachers.1.name=student"], "a reserved name in --set teachers.1.name: 'student'"),
        (["teachers=[]"], "at least 1 item"),
        (["anchor.teacher=qualty"], "the anchor names an unknown teacher in --set anchor.teacher: 'qualty'"),
        (["anchor.weight=0.1"], "an anchor needs one source"),
        (["anchor={teacher: writer, adapter: x}"], "an anchor needs one source"),
        (["cold_start={merge: mean, adapter: x}"], "a cold start needs one source"),
        (["cold_start.merge=weighted"], "adapters of a cold start have no weights"),
        (["cold_start={adapter: x, adapters: [a, b]}"], "adapters that nothing merges"),
        (["cold_start={merge: mean, adapters: [a]}"], "at least 2 items"),
        (["cold_start.adapter=x", "lora.rank=4"], "settings that would do nothing in"),
        (["cold_start.merge=svd"], "missing key 'rank'"),
        (["objective=sampled-log-ratio", "sampling.dynamics=ode"], "needs noisy steps"),
        (["task_shares={text: 1}"], "shares that do not match the teachers' tasks"),
        (
            ["sampling.stochastic_steps=[2, 10]"],
            "a window outside the steps in --set sampling.stochastic_steps",
        ),
        (["sampling.stochastic_steps=[3, 2]"], "a window outside the steps"),
        (["sampling.num_steps=1"], "a window outside the steps"),
        (["sampling.noise_level=0"], "dynamics 'sde' without noise"),
        (["sampling.dynamics=cps", "sampling.noise_level=1.2"], "cannot add more than all of it"),
        (["sampling.dynamics=cps", "sampling.stochastic_steps=[9, 9]"], "the last step of CPS adds no noise"),
        (["prompts_per_round=1"], "a round that cannot hold every task"),
        (
            ["objective={name: sampled-log-ratio, updates_per_round: 33}"],
            "more updates than trajectories in a round",
        ),
        (["sampling.guidance_scale=0.5"], "greater than or equal to 1"),
        (["state_weights=velocty"], "Did you mean 'velocity'?"),
        (["state_weights={name: velocity, values: [1]}"], "unknown key 'values'"),
        (["state_weights=custom"], "missing key 'values'"),
        (["state_weights={name: custom, values: []}"], "at least 1 item"),
        (["state_weights={name: custom, values: [1, 2]}"], "weights for another number of steps"),
        (["sampling.num_steps=3", "state_weights={name: custom, values: [0, 0, 0]}"], "no state counts"),
        (
            ["sampling.num_steps=3", "state_weights={name: custom, values: [1.0e+300, 1, 0]}"],
            "a weight that vanishes beside the largest",
        ),
        (["sampling.num_steps=3", "state_weights={name: custom, values: [1, -1, 0]}"], "equal to 0"),
        (["teachers.1.extrapolation=0.9"], "greater than or equal to 1"),
        (["anchor={teacher: writer, share: 0}"], "greater than 0"),
        (["objective=sampled-log-ratio", "state_weights=x0"], "weights that do nothing"),
        (
            ["objective=detached-state-kl", "state_weights={name: custom, values: [0, 1, 1, 1, 1]}"],
            "weights that do nothing",
        ),
        (
            ["anchor={teacher: writer, share: 0.5}", "objective=sampled-log-ratio"],
            "evaluates the anchor at every state",
        ),
    ],
)
def test_contradictions_in_a_distillation(overrides: list[str], part: str) -> None:
    assert part in refusal(DistillSettings, DISTILL, *overrides)


def test_noise_levels_are_a_word_or_a_section() -> None:
    assert from_values(changed(SFT, {"sigmas": "logit-normal"}), SFTSettings).sigmas.name == "logit-normal"
    short, long = (
        from_values(changed(SFT, {"sigmas": sigmas}), SFTSettings)
        for sigmas in ("uniform-shifted", {"name": "uniform-shifted", "shift": 3.0})
    )
    assert short == long
    assert short.teacher_of_task() == {"composition": "composer", "text": "writer", "signs": "writer"}


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["teachers.0.tasks=[]"], "teacher 'composer' has no tasks in --set teachers.0.tasks: []"),
        (["teachers.1.tasks=[composition]"], "task 'composition' has two teachers"),
        (["teachers.1.name=composer"], "two teachers with one name"),
        (["teachers.1.name=student"], "a reserved name in --set teachers.1.name: 'student'"),
        (["sigmas=logit-norml"], "Did you mean 'logit-normal'?"),
        (["sigmas={name: logit-normal, shift: 3}"], "unknown key 'shift'"),
        (["sigmas={name: uniform-shifted, shift: 0}"], "greater than 0"),
        (["caption_dropout=1"], "less than 1"),
        (["images_per_prompt=0"], "greater than or equal to 1"),
        (["sampling.num_steps=3"], "unknown key 'sampling'"),
        (["objective=direct-kl"], "unknown key 'objective'"),
    ],
)
def test_contradictions_in_a_cold_start_by_sft(overrides: list[str], part: str) -> None:
    message = refusal(SFTSettings, SFT, *overrides)
    assert part in message
    assert "To fix:" in message
    assert "llowed:" in message


def test_several_contradictions_come_at_once() -> None:
    message = refusal(DistillSettings, DISTILL, "teachers.0.tasks=[]", "anchor.teacher=nobody")
    assert message.startswith("2 problems")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["sampling.dynamics=ode"], "a policy gradient needs noisy steps"),
        (["trained_steps=[0, 9]"], "trained steps that are not stochastic"),
        (["trained_steps=[2, 1]"], "trained steps that are not stochastic"),
        (["trained_steps=[2, 4]", "steps_per_round=4"], "more steps than are trained"),
        (["sampling.dynamics=cps", "sampling.stochastic_steps=all"], "the last step of CPS adds no noise"),
        (["group_size=1"], "greater than or equal to 2"),
        (
            ["group_size=2", "groups_per_round=1", "updates_per_round=3"],
            "more updates than images in a round",
        ),
        (["rewards=[{name: ocr}, {name: ocr, weight: 2}]"], "a reward given twice"),
        (["rewards.0.weight=0"], "greater than 0"),
        (["rewards.0.tasks=[]"], "at least 1 item"),
        (["rewards.0.tasks=[text]", "task_shares={txt: 1}"], "do not match the rewards' tasks"),
        (["rewards.0.tasks=[a, b]", "groups_per_round=1"], "a round that cannot hold every task"),
        (["state_weights=velocty"], "Did you mean 'velocity'?"),
        (["state_weights={name: custom, values: [1, 2]}"], "weights for another number of steps"),
        (["sampling.num_steps=3", "state_weights={name: custom, values: [1, 0, 1]}"], "has no weight"),
        (["balanced_steps=true"], "unknown key 'balanced_steps'"),
        (["cold_start.merge=mean"], "a merge of nothing"),
        (["cold_start.adapter=x", "lora.rank=4"], "settings that would do nothing in"),
        (["rewards.0={name: geneval}"], "no detector"),
        (["rewards.0={name: geneval, palette: p, detector: d, colors: c}"], "a palette beside a Mask2Former"),
        (["rewards.0={name: geneval, detector: d}"], "a Mask2Former without a CLIP for colours"),
        (["rewards.0={name: geneval, palette: p, colors: c}"], "a setting that the palette does not have"),
        (["rewards.0={name: geneval, palette: p, side: 800}"], "a setting that the palette does not have"),
        (
            ["rewards.0={name: geneval, palette: p, threshold: 0.5}"],
            "a setting that the palette does not have",
        ),
        (
            ["rewards.0={name: geneval, detector: d, colors: c, threshold: -0.1}"],
            "greater than or equal to 0",
        ),
        (["rewards.0={name: geneval, detector: d, colors: c, counting_threshold: 1.0}"], "less than 1"),
    ],
)
def test_contradictions_in_a_teacher(overrides: list[str], part: str) -> None:
    assert part in refusal(TeacherSettings, TEACHER, *overrides)


@pytest.mark.parametrize(
    ("steps", "window", "expected"),
    [("all-but-last", "stochastic", (0, 9)), ("all", "stochastic", (0, 10)), ([1, 6], [2, 3], (2, 4))],
)
def test_trained_steps_end_before_their_stop(steps: Any, window: Any, expected: tuple[int, int]) -> None:
    values = changed(TEACHER, {"sampling": {"stochastic_steps": steps}, "trained_steps": window})
    assert from_values(values, TeacherSettings).trained_range() == expected


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["rows.writer.domains=[txt]"],
            "row 'writer' names an unknown domain in --set rows.writer.domains: 'txt'",
        ),
        (["roles={base: base, student: studnet}"], "a role for an unknown row"),
        (["roles={base: base, student: student, baselines: [mix]}"], "a role for an unknown row"),
        (
            ["roles={base: base, student: student, baselines: [writer, writer]}"],
            "a baseline that has a role already",
        ),
        (
            ["roles={base: base, student: student, baselines: [student]}"],
            "a baseline that has a role already",
        ),
        (
            ["roles={base: base, student: student, teachers: {quality: writer}}"],
            "not evaluated on its domain",
        ),
        (["roles={base: base, student: student, teachers: {txt: writer}}"], "a teacher of an unknown domain"),
        (["seeds=[1, 2, 1]"], "a seed given twice"),
        (["domains.text.seeds=[0, 0]"], "a seed given twice in --set domains.text.seeds"),
        (["rewards.1={name: ocr}"], "a reward given twice"),
        (["rows={}"], "at least 1 item"),
        (["rewards.0.weight=2"], "does nothing in an evaluation in --set rewards.0.weight: 2"),
        (
            ["rewards.0={name: geneval, palette: p, training_score: unclamped}"],
            "does nothing in an evaluation",
        ),
        (["rewards.1.tasks=[quality]"], "does nothing in an evaluation in --set rewards.1.tasks"),
    ],
)
def test_contradictions_in_an_evaluation(overrides: list[str], part: str) -> None:
    assert part in refusal(EvaluateSettings, EVALUATE, *overrides)


def test_rows_take_all_domains_unless_told_otherwise() -> None:
    settings = from_values(EVALUATE, EvaluateSettings)
    assert list(settings.rows) == ["base", "student", "writer"]
    assert settings.domains_of("student") == ("text", "quality")
    assert settings.domains_of("writer") == ("text",)


def test_a_domain_has_seeds_of_its_own_or_those_of_all() -> None:
    settings = from_values(EVALUATE, EvaluateSettings, ["seeds=[3]", "domains.text.seeds=[0, 1, 2, 3]"])
    assert (settings.seeds_of("text"), settings.seeds_of("quality")) == ((0, 1, 2, 3), (3,))


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["adapters.1.name=a"], "two adapters with one name"),
        (["adapters.1.weight=0.5"], "method 'mean' takes no weights"),
        (["method=weighted", "adapters.1.weight=0.5"], "method 'weighted' lacks weights"),
        (["method=exact-maen"], "unknown merge method in --set method: 'exact-maen'"),
        (["method=ties"], "missing key 'rank'"),
    ],
)
def test_contradictions_in_a_merge(overrides: list[str], part: str) -> None:
    assert part in refusal(MergeSettings, MERGE, *overrides)


def test_settings_cannot_be_changed() -> None:
    settings = from_values(MERGE, MergeSettings)
    with pytest.raises(ValueError, match="frozen"):
        settings.run.seed = 3
