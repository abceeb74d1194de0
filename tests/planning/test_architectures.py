"""A base is known by its config files: of this package, of a folder, of the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from errors import refused
from flow_opd.config.common import BaseModelSettings
from flow_opd.errors import ConfigError
from flow_opd.planning.architectures import BASES, Network, bundled, read_architecture
from flow_opd.planning.shapes import build_network, count

MEDIUM = "stabilityai/stable-diffusion-3.5-medium"
LARGE = "stabilityai/stable-diffusion-3.5-large"
FLUX = "black-forest-labs/FLUX.1-dev"
COMMIT = "0" * 40


def base(path: str, *, t5: bool = True, offline: bool = True) -> BaseModelSettings:
    return BaseModelSettings(path=path, max_sequence_length=128, t5=t5, offline=offline)


def put_in_hub_cache(repository: str, folder: Path, cache: Path) -> None:
    """Lays a folder out as the hub's client would after a download."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, root / "snapshots" / COMMIT)


def test_bundled_bases() -> None:
    assert bundled() == [FLUX, LARGE, MEDIUM]


@pytest.mark.parametrize(
    ("path", "part", "millions"),
    [
        (MEDIUM, "transformer", 2469.66),  # "2.5B": 2243.17 M parameters, 226.49 M numbers of positions
        (MEDIUM, "vae", 83.82),
        (MEDIUM, "text_encoder", 123.65),
        (MEDIUM, "text_encoder_2", 694.66),
        (MEDIUM, "text_encoder_3", 4762.31),
        (LARGE, "transformer", 8146.28),  # "8B": 8056.63 M parameters, 89.65 M numbers of positions
        (FLUX, "transformer", 11901.41),  # "12B"
        (FLUX, "text_encoder", 123.06),
        (FLUX, "text_encoder_2", 4762.31),
    ],
)
def test_sizes_are_the_published_ones(path: str, part: str, millions: float) -> None:
    network = read_architecture(base(path)).networks[part]
    assert count(build_network(network)) / 1e6 == pytest.approx(millions, abs=0.005)


def test_t5_can_be_left_out() -> None:
    assert set(read_architecture(base(MEDIUM, t5=False)).encoders) == {"text_encoder", "text_encoder_2"}
    assert "text_encoder_3" in read_architecture(base(MEDIUM)).encoders


def test_a_folder_speaks_for_itself(disk) -> None:
    found = read_architecture(base(str(disk.base)))
    assert found.pipeline == "StableDiffusion3Pipeline"
    assert found.networks["transformer"].config["num_layers"] == 2
    assert set(found.encoders) == {"text_encoder", "text_encoder_2"}  # it was saved without T5
    assert found.scheduler["shift"] == 3.0


def test_a_folder_goes_before_the_package(disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(disk.base, tmp_path / MEDIUM)
    assert read_architecture(base(MEDIUM)).networks["transformer"].config["num_layers"] == 2


def test_other_hub_ids_are_asked_for_their_config_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    put_in_hub_cache("someone/else", BASES / LARGE, tmp_path)
    found = read_architecture(base("someone/else"))
    assert found.networks["transformer"].config["num_layers"] == 38
    assert found.source == "someone/else, config files of the hub"


def test_an_unknown_base_offline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with refused(ConfigError, value="someone/unknown", names=["model_index.json", MEDIUM]):
        read_architecture(base("someone/unknown"))


def test_a_damaged_or_missing_config_file_is_named(disk, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(disk.base, folder)
    (folder / "vae" / "config.json").write_text("{")
    with refused(ConfigError, names=["vae/config.json", "config.json"]):
        read_architecture(base(str(folder)))
    (folder / "vae" / "config.json").unlink()
    with refused(ConfigError, names=["vae/config.json", "config.json"]):
        read_architecture(base(str(folder)))


def test_an_unknown_network_is_refused() -> None:
    with refused(ConfigError, value="UNet2DModel"):
        build_network(Network("UNet2DModel", {}))


def test_bundled_files_hold_shapes_only() -> None:
    for file in BASES.rglob("*.json"):
        assert json.loads(file.read_text())
        assert file.stat().st_size < 2000
