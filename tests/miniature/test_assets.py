"""What the package ships: small, complete, and what its manifest says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flow_opd.config.locations import asset_folder
from flow_opd.files import sha256
from flow_opd.miniature.captions import TASKS

ASSETS = asset_folder()
LIMIT = 12_000_000  # bytes


@pytest.fixture(scope="module")
def manifest():
    return json.loads((ASSETS / "manifest.json").read_text())


def weights() -> dict[str, Path]:
    return {str(file.relative_to(ASSETS)): file for file in sorted(ASSETS.rglob("*.safetensors"))}


def test_the_package_data_is_small() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= LIMIT


def test_every_weight_is_in_the_manifest_with_its_hash(manifest) -> None:
    assert manifest["sha256"] == {name: sha256(file) for name, file in weights().items()}


def test_the_manifest_tells_how_everything_was_made(manifest) -> None:
    assert set(manifest["parts"]) == {"vae", "base", "refine", "deqa", "pickscore"}
    assert set(manifest["teachers"]) == set(TASKS)
    assert set(manifest["baselines"]) == {"grpo-mix"}
    trained = (*manifest["teachers"].values(), *manifest["baselines"].values())
    for made in (*manifest["parts"].values(), *trained):
        assert made["seconds"] > 0
        assert made["samples"] > 0
        assert all(len(curve) > 10 for curve in made["curves"].values())
    for name, made in manifest["parts"].items():
        assert made["steps"] == manifest["settings"][name]["steps"]


def test_nothing_but_safetensors_holds_weights() -> None:
    assert {file.suffix for file in ASSETS.rglob("*") if file.is_file()} <= {
        ".safetensors",
        ".json",
        ".jsonl",
        ".yaml",
        ".txt",
        ".md",
    }


def test_no_config_holds_a_path_of_the_machine_that_made_it() -> None:
    for file in ASSETS.rglob("*.json"):
        assert '_name_or_path": "/' not in file.read_text(), file
