"""The JSON schemas that editors read: equal to the code, and neither stricter nor laxer than they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from flow_opd.cli import app
from flow_opd.config.file.document import parse_value, parse_yaml
from flow_opd.config.file.reader import read, to_yaml
from flow_opd.config.json_schema import json_schema
from flow_opd.config.locations import asset_folder
from flow_opd.config.stages import STAGES, settings_of

SHIPPED = asset_folder() / "schemas"
FOLDERS = (asset_folder() / "configs", Path(__file__).parents[2] / "configs")
FILES = [(folder, file) for folder in FOLDERS for file in sorted(folder.rglob("*.yaml"))]
IDS = [f"{folder.parent.name}/{file.relative_to(folder)}" for folder, file in FILES]
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")


def schema_named_in(file: Path) -> Path:
    found = MODELINE.match(file.read_text())
    assert found, f"the first line of {file} names no schema"
    return file.parent / found[1]


def faults(stage: str, data: Any) -> list[str]:
    schema = json.loads((SHIPPED / f"{stage}.json").read_text())
    return [error.json_path for error in Draft202012Validator(schema).iter_errors(data)]


@pytest.mark.parametrize("stage", STAGES)
def test_the_shipped_schema_is_that_of_the_code(stage: str) -> None:
    schema = json_schema(settings_of(stage), stage)
    Draft202012Validator.check_schema(schema)
    text = json.dumps(schema, indent=1) + "\n"
    assert (SHIPPED / f"{stage}.json").read_text() == text, f"run: flow-opd schema --out {SHIPPED}"


def test_no_schema_is_left_over() -> None:
    assert {file.stem for file in SHIPPED.iterdir()} == set(STAGES)


@pytest.mark.parametrize(("folder", "file"), FILES, ids=IDS)
def test_every_shipped_file_names_its_schema_and_satisfies_it(folder: Path, file: Path) -> None:
    named = schema_named_in(file)
    assert named.resolve().parent == SHIPPED.resolve()
    assert faults(named.stem, parse_yaml(file.read_text(), file.name).data) == []


@pytest.mark.parametrize(("folder", "file"), FILES, ids=IDS)
def test_what_the_reader_accepts_and_writes_is_accepted(folder: Path, file: Path) -> None:
    stage = schema_named_in(file).stem
    parts = {"base.yaml", "domains.yaml", "common.yaml", "flux1dev-base.yaml", "sd35m-base.yaml"}
    if file.name in parts:
        pytest.skip("only ever extended")
    resolved = to_yaml(read(file, settings_of(stage)))  # by the stage that its schema is of
    assert faults(stage, parse_yaml(resolved, "resolved").data) == []


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("distill", "extends: other.yaml"),
        ("distill", "optimizer: {extends: optimizer.yaml, learning_rate: 1}"),
        ("evaluate", "domains: {extends: domains.yaml, text: {limit: 3}}"),
        ("distill", "state_weights: sde"),
        ("distill", "state_weights: {values: [1, 2]}"),  # its name may be in the other file
        ("distill", "objective: direct-kl"),
        ("merge", "method: {rank: 8}"),
        ("merge", "method: mean"),
        ("sft", "sigmas: logit-normal"),
        ("distill", "cold_start: null"),
        ("distill", "cold_start: {merge: mean}"),
        ("teacher", "sampling: {stochastic_steps: [0, 4]}"),
    ],
)
def test_what_one_file_may_hold(stage: str, text: str) -> None:
    assert faults(stage, parse_value(text, "test")) == []


@pytest.mark.parametrize(
    ("stage", "text", "place"),
    [
        ("distill", "anchr: null", "$"),
        ("distill", "optimizer: {lerning_rate: 1.0}", "$.optimizer"),
        ("distill", "optimizer: {learning_rate: 0}", "$.optimizer.learning_rate"),
        ("distill", "optimizer: {learning_rate: '1e-4'}", "$.optimizer.learning_rate"),
        ("distill", "extends: [a.yaml, b.yaml]", "$.extends"),
        ("distill", "state_weights: custom", "$.state_weights"),  # lacks its values
        ("merge", "method: svd", "$.method"),  # lacks its rank
        ("distill", "objective: kl", "$.objective"),
        ("distill", "teachers: [{name: text, tasks: [text]}]", "$.teachers[0]"),  # lists are whole
        ("distill", "teachers: [{extends: text.yaml}]", "$.teachers[0]"),  # and nothing is laid over them
        ("teacher", "rewards: [{path: x}]", "$.rewards[0]"),
        ("teacher", "rewards: [{name: deqa}]", "$.rewards[0]"),
        ("teacher", "sampling: {stochastic_steps: [0, 4, 5]}", "$.sampling.stochastic_steps"),
        ("evaluate", "rows: {base: {guidance_scale: 0.5}}", "$.rows.base.guidance_scale"),
    ],
)
def test_what_no_file_may_hold(stage: str, text: str, place: str) -> None:
    assert place in faults(stage, parse_value(text, "test"))


def test_keys_have_their_help_on_one_line() -> None:
    share = json.loads((SHIPPED / "distill.json").read_text())["$defs"]["AnchorSettings"]["properties"][
        "share"
    ]
    assert share["description"].startswith("Share of the states, drawn at random, at which the anchor is")
    assert "\n" not in share["description"]


def test_the_command_prints_one_or_all_and_writes_files(tmp_path: Path) -> None:
    one = CliRunner().invoke(app, ["schema", "merge"])
    assert one.exit_code == 0
    assert json.loads(one.stdout) == json.loads((SHIPPED / "merge.json").read_text())
    every = CliRunner().invoke(app, ["schema"])
    assert json.loads(every.stdout)["merge"] == json.loads(one.stdout)
    assert set(json.loads(every.stdout)) == set(STAGES)
    written = CliRunner().invoke(app, ["schema", "--out", str(tmp_path)])
    assert written.exit_code == 0
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in SHIPPED.iterdir()}
    assert (tmp_path / "sft.json").read_bytes() == (SHIPPED / "sft.json").read_bytes()
