"""The example package, installed as a user would, and used by the commands."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calls import flow_opd, refused, succeeds

PACKAGE = Path(__file__).parents[2] / "examples" / "own_parts"
SHORT = [
    *("--set", "run.rounds=1", "--set", "sampling.num_steps=3", "--set", "sampling.stochastic_steps=[0, 1]"),
    *("--set", "run.threads=1"),
]
HUBER = ["distill", "asset:configs/distill.yaml", *SHORT, "--set", "prompts_per_round=4"]
SHARP = [
    *("teacher", "asset:configs/teachers/quality.yaml", *SHORT),
    *("--set", "group_size=2", "--set", "groups_per_round=2", "--set", "steps_per_round=1"),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package has been installed into."""
    source, folder = tmp_path_factory.mktemp("source") / "own_parts", tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), str(source)], check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def on_the_path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(installed)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "own_parts"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_its_settings_are_listed_with_ours() -> None:
    keys = succeeds("distill", "--keys").stdout
    assert "objective(huber).delta" in keys
    assert "from which on the distance grows linearly" in keys
    assert "rewards[](sharpness).limit" in succeeds("teacher", "--keys").stdout


def test_an_objective_trains_and_belongs_to_the_identity(installed: Path, tmp_path: Path) -> None:
    command = [*HUBER, "--set", "objective={name: huber, delta: 0.5}"]
    succeeds(*command, "--out", "run", cwd=tmp_path)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["teacher_gap"] > 0
    assert "name: huber" in (tmp_path / "run" / "config.yaml").read_text()
    refused(*HUBER, "--set", "objective={name: huber, delta: 0.6}", "--out", "run", cwd=tmp_path)
    code = installed / "own_parts" / "objectives.py"
    before = code.read_text()
    code.write_text(before.replace("return 2 *", "return 3 *"))
    try:
        refused(*command, "--out", "run", cwd=tmp_path)
    finally:
        code.write_text(before)
    succeeds(*command, "--out", "run", cwd=tmp_path)  # as it was: finished


def test_a_reward_trains_and_is_evaluated(tmp_path: Path) -> None:
    place = "own_parts.rewards:Sharpness"
    named = f"rewards=[{{name: '{place}', limit: 0.2}}]"
    succeeds(*SHARP, "--set", named, "--out", "teacher", cwd=tmp_path)
    line = json.loads((tmp_path / "teacher" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < line["reward"] <= 1
    keys = flow_opd("teacher", str(tmp_path / "teacher" / "config.yaml"), "--keys").stdout
    assert f"rewards[]({place}).limit" in keys
    (tmp_path / "evaluate.yaml").write_text(
        "run: {out: table, threads: 1}\n"
        "base: {path: asset:base, max_sequence_length: 0}\n"
        "rows: {base: {}, teacher: {adapter: teacher/adapter}}\n"
        "domains: {mine: {path: asset:prompts/test/quality.jsonl, limit: 2}}\n"
        "rewards: [sharpness]\n"
        "num_steps: 2\ngrid_prompts: 1\n"
    )
    told = succeeds("evaluate", "evaluate.yaml", cwd=tmp_path).stdout
    assert "sharpness" in told
    results = json.loads((tmp_path / "table" / "results.json").read_text())
    cell = results["rows"][0]["metrics"]["sharpness"]
    assert 0 < cell["mean"] <= 1
    assert cell["n"] == 2
    assert results["protocol"]["judges"] == {"sharpness": "sharpness"}
    assert "sharpness" in (tmp_path / "table" / "report.html").read_text()
    refused("evaluate", "evaluate.yaml", "--set", "rewards=[{name: sharpness, limit: 2}]", cwd=tmp_path)
