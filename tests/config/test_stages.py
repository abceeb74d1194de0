"""Whose settings a file holds: its key `stage` says it, and each command takes its own alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from calls import refused, succeeds
from errors import refused as refusal
from flow_opd.config.file.document import load_document
from flow_opd.config.file.reader import to_yaml
from flow_opd.config.locations import asset_folder
from flow_opd.config.recorded import recorded
from flow_opd.config.stages import STAGES, of_stage, settings_of
from flow_opd.errors import ConfigError

FOLDERS = (asset_folder() / "configs", Path(__file__).parents[2] / "configs")
PARTS = {"base.yaml", "domains.yaml", "common.yaml", "flux1dev-base.yaml", "sd35m-base.yaml"}
WHOLE = [file for folder in FOLDERS for file in sorted(folder.rglob("*.yaml")) if file.name not in PARTS]
MERGE = asset_folder() / "configs" / "merge.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_the_settings_say_their_stage_first(stage: str) -> None:
    fields = settings_of(stage).model_fields
    assert next(iter(fields)) == "stage"
    assert fields["stage"].default == stage


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_every_whole_file_says_its_stage(file: Path) -> None:
    assert "\nstage: " in file.read_text()
    settings = of_stage(load_document(file), *STAGES)
    assert to_yaml(settings).startswith(f"stage: {settings.stage}\n")


def test_another_command_is_named() -> None:
    told = refused("distill", "asset:configs/merge.yaml", "--check")
    assert f"settings of another stage in {MERGE}:" in told
    assert f"`flow-opd merge {MERGE}`" in told
    assert "`flow-opd miniature prompts " in refused("merge", "asset:configs/prompts.yaml")


def test_a_stage_that_there_is_not() -> None:
    assert "Did you mean 'merge'" in refused("merge", "asset:configs/merge.yaml", "--set", "stage=merg")
    assert "['merge']" in refused("merge", "asset:configs/merge.yaml", "--set", "stage=[merge]")


def test_a_file_without_its_stage_is_that_of_the_command(tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(
        MERGE.read_text().replace("stage: merge\n", "").replace("base.yaml", str(MERGE.parent / "base.yaml"))
    )
    assert succeeds("merge", str(file), "--check").stdout.startswith("stage: merge\n")


def test_a_run_folder_says_its_stage(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(of_stage(load_document(MERGE), "merge")))
    assert recorded(tmp_path).stage == "merge"
    config.write_text(config.read_text().replace("stage: merge\n", ""))
    with refusal(ConfigError, value=None, names=[str(config), "'merge'"]):
        recorded(tmp_path)
    config.write_text("stage: card\nfolder: x\n")
    with refusal(ConfigError, value="card", names=["'merge'"]):
        recorded(tmp_path)
