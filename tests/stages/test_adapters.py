"""Adapters by name in the stages: hub ids from a cache, and what is said about them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from flow_opd.adapters.lora import CONFIG_FILE, WEIGHTS_FILE, LoraWeights
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.reader import read
from flow_opd.config.locations import asset_folder
from flow_opd.config.merge import MergeSettings
from flow_opd.processes import ALONE
from flow_opd.runs.adapters import load_lora
from flow_opd.runs.score_cache import ScoreCache
from flow_opd.stages import merge

COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
CONFIGS = asset_folder() / "configs"
HUB_BASE = BaseModelSettings(
    path="stabilityai/stable-diffusion-3.5-medium", max_sequence_length=128, offline=True
)


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's text teacher as the cached repository owner/teacher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--owner--teacher"
    folder = repository / "snapshots" / COMMIT
    shutil.copytree(asset_folder() / "teachers" / "text", folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_merge_of_hub_ids(snapshot: Path, tmp_path: Path) -> None:
    adapters = "[{name: one, adapter: owner/teacher}, {name: two, adapter: owner/teacher@main}]"
    changes = ["run.out=merged", "method=mean", f"adapters={adapters}", "base.offline=true"]
    folder = merge.run(read(CONFIGS / "merge.yaml", MergeSettings, changes))
    merged, teacher = LoraWeights.read(folder / "adapter"), LoraWeights.read(snapshot)
    for module in teacher.factors:
        assert (merged.delta(module) - teacher.delta(module)).abs().max() < 1e-5


def test_a_cell_of_the_table_knows_its_adapter_by_content(snapshot: Path, tmp_path: Path) -> None:
    """Whatever its name is; alpha counts too."""
    names = "rows={base: {}, student: {adapter: owner/teacher}}"
    changes = [names, "roles={base: base, student: student}", "base.offline=true"]
    settings = read(CONFIGS / "evaluate.yaml", EvaluateSettings, changes)

    def key() -> str:
        digests = {"student": load_lora("owner/teacher", HUB_BASE, key="adapter").digest()}
        return ScoreCache(tmp_path, settings, digests, resume=True, processes=ALONE).key("student", "text")

    first = key()
    assert first == key()
    edit_config(snapshot, lora_alpha=1)
    second = key()
    assert second != first
    weights = snapshot / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert key() not in (first, second)


def test_what_is_said(
    snapshot: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_lora("owner/teacher", HUB_BASE, key="adapter")
    assert capsys.readouterr().err == ""
    edit_config(
        snapshot, alpha_pattern={"to_q": 1}, base_model_name_or_path="stabilityai/stable-diffusion-3-medium"
    )
    load_lora("owner/teacher", HUB_BASE, key="adapter")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("note: adapter owner/teacher: alpha / rank differs by module")
    assert "belongs to stabilityai/stable-diffusion-3-medium, but the base is" in said[1]
    monkeypatch.setenv("RANK", "1")  # one of several processes speaks for all
    load_lora("owner/teacher", HUB_BASE, key="adapter")
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("RANK")
    edit_config(snapshot, alpha_pattern={}, base_model_name_or_path=None)
    load_lora("owner/teacher", HUB_BASE, key="adapter")
    assert capsys.readouterr().err == ""
