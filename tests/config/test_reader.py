"""Reading a file: strict types, located messages, overrides, inheritance, and writing it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import assert_refused, refused
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.document import parse_value
from flow_opd.config.file.reader import dump, from_values, read, to_yaml
from flow_opd.config.merge import MergeSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import ConfigError

TEACHER = """\
run: {out: runs/t, rounds: 5}
base:
  path: asset:base
  max_sequence_length: 0
prompts:
  - path: prompts.jsonl
rewards:
  - name: ocr
optimizer:
  learning_rate: 3e-4
"""


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def refusal(file: Path, *overrides: str, model: Any = TeacherSettings) -> str:
    with pytest.raises(ConfigError) as caught:
        read(file, model, overrides)
    return str(caught.value)


def test_values_and_defaults(tmp_path: Path) -> None:
    settings = read(write(tmp_path, TEACHER), TeacherSettings)
    assert settings.optimizer.learning_rate == 3e-4  # YAML 1.1 would call this a word
    assert settings.optimizer.betas == (0.9, 0.999)
    assert settings.rewards[0].name == "ocr"
    assert settings.run.out == Path("runs/t")


def test_unknown_key_names_file_line_and_nearest_key(tmp_path: Path) -> None:
    file = write(tmp_path, TEACHER.replace("learning_rate", "lerning_rate"))
    message = refusal(file)
    names = [f"'lerning_rate' in {file}:10", "optimizer", "'learning_rate'", "learning_rate, weight_decay"]
    assert_refused(message, value=3e-4, names=names)


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    text = (
        TEACHER.replace("rounds: 5", "rounds: 0").replace("3e-4", "fast")
        + "group_size: 1.5\nlora: {rnk: 3}\n"
    )
    file = write(tmp_path, text)
    message = refusal(file)
    for value, place in (
        (0, f"'run.rounds' in {file}:1"),
        ("fast", f"'optimizer.learning_rate' in {file}:10"),
        (1.5, f"'group_size' in {file}:11"),
        (3, f"'rnk' in {file}:12"),
    ):
        assert_refused(message, value=value, names=[place])
    assert message.count(". Allowed: ") == 4
    assert "Allowed: whole number" in message  # as --keys calls it


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("  - name: ocr", "  - name: orc"), ("unknown reward", ":8: 'orc'", "Did you mean 'ocr'?")),
        (("  - name: ocr", "  - weight: 1"), ("missing key 'name' in", ":8")),
        (
            ("  - name: ocr", "  - {name: deqa, path: p, alphabet: a}"),
            ("'alphabet'", "name, weight, tasks, path"),
        ),
        (("  - name: ocr", "  - name: deqa"), ("missing key 'path' in", ":8 (section rewards.0)")),
        (("run: {out: runs/t, rounds: 5}", ""), ("missing key 'run' in", "add 'run'")),
        (("  max_sequence_length: 0", "  max_sequence_length: -1"), (":4: -1", "greater than or equal to 0")),
        (("path: prompts.jsonl", "path: 7"), ("'prompts.0.path' in", ":6: 7", "string")),
        (("learning_rate: 3e-4", "learning_rate: '3e-4'"), (":10: '3e-4'", "number")),
        (("learning_rate: 3e-4", "decay: linaer"), (":10: 'linaer'", "Did you mean 'linear'?")),
        (("  learning_rate: 3e-4", "  betas: [0.9, x]"), ("'optimizer.betas.1' in", ":10: 'x'")),
        (
            ("optimizer:\n  learning_rate: 3e-4", "optimizer: adam"),
            (":9: 'adam'", "section of keys and values"),
        ),
        (
            ("optimizer:\n", "sampling: {stochastic_steps: some}\noptimizer:\n"),
            ("'all-but-last' or 'all'", ":9"),
        ),
    ],
)
def test_wrong_values_name_their_line(
    tmp_path: Path, change: tuple[str, str], parts: tuple[str, ...]
) -> None:
    assert change[0] in TEACHER
    message = refusal(write(tmp_path, TEACHER.replace(*change)))
    for part in parts:
        assert part in message
    assert "problems in" not in message  # one cause, one message


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a: 1\na: 2\n", ["'a'", "{file}:1", "{file}:2"]),
        ("a: [1\nb: 2\n", ["{file}:2"]),
        ("a: &x 1\nb: *x\n", ["{file}:2", "aliases"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["{file}:1", "python/object/apply"]),
        ("- 1\n", ["{file}"]),
        ("1: 2\n", ["{file}:1"]),
        ("a: \x07\n", ["{file}"]),
    ],
)
def test_malformed_yaml_names_its_line(tmp_path: Path, text: str, names: list[str]) -> None:
    file = write(tmp_path, text)
    assert_refused(refusal(file), names=[name.format(file=file) for name in names])


def test_absent_file_suggests_a_sibling(tmp_path: Path) -> None:
    write(tmp_path, TEACHER, "teacher.yaml")
    assert_refused(refusal(tmp_path / "techer.yaml"), names=["techer.yaml", "'teacher.yaml'"])


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert_refused(refusal(tmp_path / "x.yaml"), names=["x.yaml"])


def test_extends_merges_deeply_and_replaces_lists(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, TEACHER, "low.yaml")
    file = write(
        tmp_path / "sub",
        "extends: ../low.yaml\noptimizer: {weight_decay: 0}\nprompts: [{path: other.jsonl, task: text}]\n",
    )
    settings = read(file, TeacherSettings)
    assert (settings.optimizer.learning_rate, settings.optimizer.weight_decay) == (3e-4, 0.0)
    assert [each.path for each in settings.prompts] == ["other.jsonl"]


def test_extends_keeps_the_file_of_each_line(tmp_path: Path) -> None:
    low = write(tmp_path, TEACHER.replace("3e-4", "-1"), "low.yaml")
    file = write(tmp_path, "extends: low.yaml\ngroup_size: 1\n")
    message = refusal(file)
    assert f"'optimizer.learning_rate' in {low}:10: -1" in message
    assert f"'group_size' in {file}:2: 1" in message


def test_an_overridden_key_is_blamed_on_the_upper_file(tmp_path: Path) -> None:
    write(tmp_path, TEACHER, "low.yaml")
    file = write(tmp_path, "extends: low.yaml\noptimizer: {learning_rate: -2}\n")
    assert f"'optimizer.learning_rate' in {file}:2: -2" in refusal(file)


def test_extends_in_a_circle_or_to_nowhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    assert "'a.yaml -> b.yaml -> a.yaml'" in refusal(tmp_path / "a.yaml")
    file = write(tmp_path, "x: 1\nextends: c.yaml\n")
    assert f"the file that 'extends' names in {file}:2 does not exist" in refusal(file)


def test_set_overrides_values_sections_and_list_items(tmp_path: Path) -> None:
    file = write(tmp_path, TEACHER + "ema: null\n")
    settings = read(
        file,
        TeacherSettings,
        ["optimizer.learning_rate=1e-3", "ema.every=4", "prompts.0.task=text", "lora.target_modules=[to_q]"],
    )
    assert settings.optimizer.learning_rate == 1e-3
    assert settings.ema is not None
    assert settings.ema.every == 4
    assert settings.prompts[0].task == "text"
    assert settings.lora.target_modules == ("to_q",)


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("optimizer.lerning_rate=1", "unknown key 'lerning_rate' in --set optimizer.lerning_rate"),
        ("group_size=many", "'group_size' in --set group_size: 'many'"),
        ("group_size", "cannot apply --set group_size"),
        ("prompts.3.task=text", "a position from 0 to 0 in the list prompts"),
        ("group_size.x=1", "a section at group_size, not a single value"),
        ("group_size=[1", "--set group_size:1 cannot be read as YAML"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, assignment: str, part: str) -> None:
    assert part in refusal(write(tmp_path, TEACHER + "group_size: 4\n"), assignment)


def test_values_without_a_file_are_checked_alike() -> None:
    with refused(ConfigError, names=["'base'"]):
        from_values({"run": {"out": "x"}, "adapters": [{"name": "a", "adapter": "a"}] * 2}, MergeSettings)


def test_dump_reads_back_equal(tmp_path: Path) -> None:
    settings = read(write(tmp_path, TEACHER), TeacherSettings, ["run.out='null'", "base.revision=1e-4x"])
    dump(settings, tmp_path / "config.yaml")
    assert read(tmp_path / "config.yaml", TeacherSettings) == settings
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".tmp")] == []


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    st.sampled_from(
        ["1e-4", "no", "null", "~", "", "0x10", "1:30", "2026-01-01", "true", ".5", "-", "=", "<<"]
    ),
)


@settings(deadline=None, max_examples=50)
@given(SCALARS)
def test_every_scalar_survives_writing_and_reading(value: Any) -> None:
    from flow_opd.config.file.document import Dumper

    read_back = parse_value(yaml.dump([value], Dumper=Dumper, allow_unicode=True), "text")
    assert read_back == [value]
    assert type(read_back[0]) is type(value)


def test_words_of_yaml_1_1_stay_words_and_octals_are_decimal() -> None:
    assert parse_value("[no, on, 2026-01-01, 1:30, 0x10, 010, 1_0, .inf]", "text") == [
        *("no", "on", "2026-01-01", "1:30", "0x10", 10, "1_0", ".inf")
    ]


def test_yaml_text_names_every_default() -> None:
    text = to_yaml(
        from_values(
            {
                "run": {"out": "x"},
                "base": {"path": "b", "max_sequence_length": 0},
                "adapters": [{"name": name, "adapter": name} for name in "ab"],
            },
            MergeSettings,
        )
    )
    assert "seed: 0\n" in text
    assert "method: mean\n" in text


def test_what_replaces_a_list_is_the_place_of_all_in_it(tmp_path: Path) -> None:
    """Neither --set nor a file over another one is told by the lines of what it has replaced."""
    file = write(tmp_path, TEACHER)
    with refused(ConfigError, value="orc", names=["--set rewards"]) as told:
        read(file, TeacherSettings, ["rewards=[{name: orc}]"])
    assert f"{file}:" not in str(told.value).split(". Allowed")[0]
    over = tmp_path / "over.yaml"
    over.write_text(f"extends: {file.name}\nrewards:\n  - {{name: ocr, weight: -1}}\n")
    with refused(ConfigError, value=-1, names=["over.yaml:3"]):
        read(over, TeacherSettings)


def test_a_file_may_lie_over_one_of_the_package(tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("extends: asset:configs/distill.yaml\nrun: {out: mine}\n")
    assert read(over, DistillSettings).teachers
    over.write_text("extends: asset:configs/distil.yaml\n")
    with refused(ConfigError, value="asset:configs/distil.yaml", names=["configs/distill.yaml"]):
        read(over, DistillSettings)
