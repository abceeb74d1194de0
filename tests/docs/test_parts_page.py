"""docs/parts.md: its configurations are good ones, and its code is a part."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from flow_opd.config.distill import DistillConfig
from flow_opd.config.file.reader import from_values
from flow_opd.config.rewards import RewardSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "parts.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LINES = re.findall(r"^rewards: .*$", PAGE, re.MULTILINE)
PYPROJECT = (ROOT / "examples" / "own_parts" / "pyproject.toml").read_text()


def test_its_function_is_an_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part_of_the_page.py").write_text(CODE[0])
    monkeypatch.syspath_prepend(tmp_path)
    config = from_values({"objective": {"name": "part_of_the_page:huber", "delta": 0.5}}, DistillConfig)
    assert config.objective.made().__name__ == "huber"


def test_its_names_lead_to_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples" / "own_parts" / "src")
    names = [
        each if isinstance(each, str) else each["name"]
        for line in LINES
        for each in yaml.safe_load(line)["rewards"]
    ]
    assert names == ["ocr", "sharpness", "own_parts.rewards:Sharpness"]
    for name in (names[0], names[2]):
        assert RewardSettings.chosen(name)
    assert f'{names[1]} = "{names[2]}"' in PYPROJECT
    assert f'{names[1]} = "{names[2]}"' in PAGE


def test_its_table_has_every_kind() -> None:
    from flow_opd.config.common import BackboneSettings
    from flow_opd.config.merge import MergeMethodSettings
    from flow_opd.config.objectives import ObjectiveSettings
    from flow_opd.config.sampling import DynamicsSettings
    from flow_opd.config.state_weights import StateWeightsSettings
    from flow_opd.config.teachers import RouterSettings

    kinds = (
        *(RewardSettings, ObjectiveSettings, RouterSettings, MergeMethodSettings),
        *(DynamicsSettings, StateWeightsSettings, BackboneSettings),
    )
    assert set(re.findall(r"`(flow_opd\.\w+)` \|$", PAGE, re.MULTILINE)) == {
        each.kind.group for each in kinds
    }
