"""From a name to a backbone: which class, which parts, which device; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from errors import refused
from flow_opd.backbones.compute import choose_device
from flow_opd.backbones.flux import FluxBackbone
from flow_opd.backbones.loading import load_backbone
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.errors import ConfigError
from flow_opd.method.rollouts import draw_noise
from tiny import PROMPTS
from tiny_pipelines import tiny_flux, tiny_sd3

pytestmark = pytest.mark.slow

CPU = ComputeSettings(device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved bases: SD3 with T5, without it, and FLUX."""
    root = tmp_path_factory.mktemp("bases")
    pipes = {"t5": tiny_sd3(t5=True), "plain": tiny_sd3(t5=False), "flux": tiny_flux()}
    for name, pipe in pipes.items():
        pipe.save_pretrained(root / name)
    return {name: root / name for name in pipes}


def settings(path: Path | str, **changes: Any) -> BaseModelSettings:
    return BaseModelSettings(**{"path": str(path), "max_sequence_length": 6, **changes})


def velocity(backbone: Any) -> torch.Tensor:
    noise = draw_noise(backbone.latent_shape, [torch.Generator().manual_seed(row) for row in range(4)])
    return backbone.velocity(noise, torch.full((4,), 0.5), backbone.encode_prompts(PROMPTS))


@pytest.mark.parametrize("name", ["t5", "plain", "flux"])
def test_a_saved_folder_comes_back_as_its_own_kind(folders: dict[str, Path], name: str) -> None:
    flux = name == "flux"
    more = {"embedded_guidance": 3.5, "resolution": 8} if flux else {}
    loaded = load_backbone(settings(folders[name], **more), CPU)
    assert type(loaded) is (FluxBackbone if flux else SD3Backbone)
    fresh = (
        FluxBackbone(tiny_flux(), max_sequence_length=6, **more)
        if flux
        else SD3Backbone(tiny_sd3(t5=name == "t5"), max_sequence_length=6)
    )
    assert torch.equal(velocity(loaded), velocity(fresh))
    modules = [part for part in loaded.pipe.components.values() if isinstance(part, nn.Module)]
    assert not any(parameter.requires_grad for part in modules for parameter in part.parameters())
    assert not any(part.training for part in modules)


def test_t5_can_be_left_where_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    without = load_backbone(settings(folders["t5"], t5=False), CPU)
    assert without.pipe.text_encoder_3 is None
    assert without.pipe.tokenizer_3 is None
    conditioning = without.encode_prompts(PROMPTS)
    assert conditioning.embeds.shape == (4, 10 + 6, 16)
    assert not conditioning.embeds[:, 10:].any()
    shutil.copytree(folders["t5"], tmp_path / "base")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(tmp_path / "base" / part)  # not even looked for
    again = load_backbone(settings(tmp_path / "base", t5=False), CPU)
    assert torch.equal(velocity(again), velocity(without))
    with refused(ConfigError, names=["base"]):
        load_backbone(settings(tmp_path / "base"), CPU)
    assert without.encoder_identity() != load_backbone(settings(folders["t5"]), CPU).encoder_identity()


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_frozen_weights_have_the_dtype_that_was_asked_for(
    folders: dict[str, Path], dtype: str, kind: torch.dtype
) -> None:
    loaded = load_backbone(settings(folders["t5"], dtype=dtype), CPU)
    assert loaded.dtype == kind
    assert {p.dtype for p in loaded.transformer.parameters()} == {kind}
    found = velocity(loaded)
    assert found.dtype == torch.float32
    exact = velocity(load_backbone(settings(folders["t5"]), CPU))
    assert 0 < (found - exact).norm() / exact.norm() < 0.05


def test_the_variant_names_the_files(folders: dict[str, Path], tmp_path: Path) -> None:
    tiny_sd3(t5=False).save_pretrained(tmp_path, variant="fp16")
    loaded = load_backbone(settings(tmp_path, variant="fp16"), CPU)
    assert torch.equal(velocity(loaded), velocity(load_backbone(settings(folders["plain"]), CPU)))
    with refused(ConfigError, names=["base.variant", "plain"]):
        load_backbone(settings(folders["plain"], variant="fp8"), CPU)


def test_the_resolution_is_that_of_the_settings(folders: dict[str, Path]) -> None:
    assert load_backbone(settings(folders["plain"]), CPU).image_size == 8
    larger = load_backbone(settings(folders["plain"], resolution=12), CPU)
    assert (larger.image_size, larger.latent_shape) == (12, (4, 6, 6))
    with refused(ConfigError, value=20, names=["base.resolution"]):
        load_backbone(settings(folders["plain"], resolution=20), CPU)


def test_what_a_kind_of_base_does_not_have_is_refused(folders: dict[str, Path]) -> None:
    with refused(ConfigError, value=3.5, names=["base.embedded_guidance"]):
        load_backbone(settings(folders["plain"], embedded_guidance=3.5), CPU)
    with refused(ConfigError, value=False, names=["base.t5"]):
        load_backbone(settings(folders["flux"], embedded_guidance=3.5, t5=False), CPU)
    with refused(ConfigError, names=["base.embedded_guidance", "3.5"]):
        load_backbone(settings(folders["flux"]), CPU)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "cut"),
        ("text_encoder/model.safetensors", "cut"),
        ("vae/diffusion_pytorch_model.safetensors", "gone"),
        ("model_index.json", "cut"),
    ],
)
def test_a_damaged_base_is_named(folders: dict[str, Path], tmp_path: Path, file: str, damage: str) -> None:
    shutil.copytree(folders["plain"], tmp_path / "base")
    target = tmp_path / "base" / file
    content = target.read_bytes()
    target.unlink()
    if damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    with refused(ConfigError, value=str(tmp_path / "base")):
        load_backbone(settings(tmp_path / "base"), CPU)


def test_a_pipeline_of_another_kind_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with refused(ConfigError, value=str(tmp_path), names=["model_index.json"]):
        load_backbone(settings(tmp_path), CPU)
    for name in ("StableDiffusionXLPipeline", None, ["pipeline", "Custom"]):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        with refused(ConfigError, value=name, names=["FluxPipeline", "StableDiffusion3Pipeline"]):
            load_backbone(settings(tmp_path), CPU)


@pytest.mark.parametrize("name", ["gpu", "cuda:17", "", "meta", "Cpu"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    with refused(ConfigError, value=name, names=["'compute.device'", "auto, cpu"]):
        load_backbone(settings(tmp_path), ComputeSettings.model_construct(device=name))


def test_auto_takes_the_accelerator_and_lets_the_process_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    # No card here: what torch would answer on a machine with two.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")  # without a number: the current card of the process
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with refused(ConfigError, value="cuda:2"):
        choose_device("cuda:2")
