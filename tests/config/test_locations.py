"""Names of assets, paths and hub repositories."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import refused
from flow_opd.config import locations
from flow_opd.config.locations import asset_folder, hub_id, locate, locate_model
from flow_opd.errors import ConfigError


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "assets"
    (folder / "base").mkdir(parents=True)
    monkeypatch.setattr(locations, "asset_folder", lambda: folder)
    return folder


def test_assets_live_in_the_package() -> None:
    import flow_opd

    assert asset_folder() == Path(flow_opd.__file__).parent / "miniature" / "assets"


def test_asset_path_and_hub_id(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "folder").mkdir(parents=True)
    assert locate("asset:base") == assets / "base"
    assert locate_model("asset:base") == str(assets / "base")
    assert locate("owner/folder") == Path("owner/folder")
    assert locate_model("owner/folder") == "owner/folder"  # the folder
    assert (
        locate_model("stabilityai/stable-diffusion-3.5-medium") == "stabilityai/stable-diffusion-3.5-medium"
    )


@pytest.mark.parametrize("name", ["asset:bse", "asset:", "asset:../assets.txt", "asset:/etc"])
def test_absent_or_outside_asset_is_refused(assets: Path, name: str) -> None:
    (assets.parent / "assets.txt").touch()
    with refused(ConfigError, names=["base.path"]) as caught:
        locate(name, key="base.path")
    assert "asset:base" in str(caught.value)


def test_absent_path_suggests_a_sibling(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").touch()
    with refused(ConfigError, names=["prompts.jsonl", "promts.jsonl"]):
        locate(tmp_path / "promts.jsonl")
    with refused(ConfigError, names=["deep"]):
        locate_model(str(tmp_path / "nowhere" / "deep"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1")),
        ("owner/name@", None),
        ("owner/name/deeper", None),
        ("asset:teachers/text", None),
        ("./owner/name", None),
        ("here/folder", None),
    ],
)
def test_hub_ids(
    name: str, expected: tuple[str, str | None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "folder").mkdir(parents=True)
    assert hub_id(name) == expected
