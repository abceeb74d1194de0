"""Exports: what every ecosystem's loader makes of them, and that a broken one is caught and removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from errors import refused
from flow_opd.adapters.formats.reading import read_adapter
from flow_opd.adapters.formats.writing import (
    COMFYUI_FILE,
    DIFFUSERS_FILE,
    write_comfyui,
    write_diffusers,
)
from flow_opd.adapters.lora import CONFIG_FILE, WEIGHTS_FILE, LoraWeights
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.options import ExportSettings
from flow_opd.errors import AdapterError, ConfigError
from flow_opd.stages import export
from tiny import Tiny, new_tiny_pipeline
from tiny_pipelines import TinyOn, tiny_sd3

pytestmark = pytest.mark.slow

FORMATS = ("peft", "diffusers", "comfyui")
FILES = {
    "peft": [CONFIG_FILE, WEIGHTS_FILE],
    "diffusers": [DIFFUSERS_FILE],
    "comfyui": [COMFYUI_FILE],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base on disk (`base`) and a run folder (`run`) with an adapter of rank 2 and alpha 4."""
    folder = tmp_path_factory.mktemp("world")
    new_tiny_pipeline().save_pretrained(folder / "base")
    tiny = Tiny()
    tiny.bank.weights("student").write(folder / "run" / "adapter", base_model=str(folder / "base"))
    return folder


def settings(world: Path, out: Path, **options: Any) -> ExportSettings:
    base = BaseModelSettings(path=str(world / "base"), max_sequence_length=0)
    return ExportSettings(**{"source": str(world / "run"), "out": out, "base": base, **options})


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_is_loaded_again_and_says_so(
    name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export.run(settings(world, tmp_path / "out", format=name, base=None))
    assert sorted(file.name for file in out.iterdir()) == FILES[name]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    line = capsys.readouterr().err
    assert f"{name}: loaded again, largest velocity difference" in line
    difference, effect = (
        float(word) for word in line.replace(")", "").split() if "e-" in word or "e+" in word
    )
    assert difference < 1e-5 < 0.01 < effect
    back, student = read_adapter(out), read_adapter(world / "run" / "adapter")
    assert back.factors.keys() == student.factors.keys()
    for module in student.factors:
        assert torch.equal(back.delta(module), student.delta(module)), module


def test_fused_weights_need_no_adapter(world: Path, tmp_path: Path) -> None:
    out = export.run(settings(world, tmp_path / "out", format="peft", fused=True))
    assert not [file for file in out.rglob("*") if file.suffix in (".bin", ".pt")]
    assert str(world) not in (out / "transformer" / "config.json").read_text()
    fused = SD3Transformer2DModel.from_pretrained(out / "transformer").state_dict()
    bare = new_tiny_pipeline().transformer.state_dict()
    student = read_adapter(world / "run" / "adapter")
    for name, weight in bare.items():
        module = name.removesuffix(".weight")
        expected = weight + student.delta(module) if module in student.factors else weight
        torch.testing.assert_close(fused[name], expected, atol=1e-7, rtol=1e-6)


def test_half_precision_is_told_apart_from_no_effect(world: Path, tmp_path: Path) -> None:
    base = BaseModelSettings(path=str(world / "base"), max_sequence_length=0, dtype="bfloat16")
    for name in FORMATS:
        out = tmp_path / name
        export.run(settings(world, out, format=name, fused=True, base=base))
        assert (out / "transformer").is_dir()


def broken_peft(lora: LoraWeights, folder: Path) -> None:
    """Alpha as the rank."""
    LoraWeights(lora.rank, lora.rank, lora.factors, lora.target_modules).write(folder)


def peft_keys(lora: LoraWeights, folder: Path) -> None:
    """The peers' mistake: PEFT's keys in a file of diffusers, loaded without effect."""
    write_diffusers(lora, folder)
    rewrite(folder / DIFFUSERS_FILE, lambda key: key.replace("transformer.", "base_model.model.", 1))


def no_metadata(lora: LoraWeights, folder: Path) -> None:
    write_diffusers(lora, folder)
    rewrite(folder / DIFFUSERS_FILE, lambda key: key)


def no_alpha(lora: LoraWeights, folder: Path) -> None:
    write_comfyui(lora, folder)
    rewrite(folder / COMFYUI_FILE, lambda key: None if key.endswith(".alpha") else key)


def swapped_streams(lora: LoraWeights, folder: Path) -> None:
    write_comfyui(lora, folder)
    swap = {"x_block": "context_block", "context_block": "x_block"}

    def other(key: str) -> str:
        here = "context_block" if "context_block" in key else "x_block"
        return key.replace(here, swap[here]) if "attn_qkv" in key else key

    rewrite(folder / COMFYUI_FILE, other)


def unknown_key(lora: LoraWeights, folder: Path) -> None:
    write_comfyui(lora, folder)
    rewrite(folder / COMFYUI_FILE, lambda key: key.replace("joint_blocks_0_", "joint_blocks_7_"))


def rewrite(file: Path, new_key: Callable[[str], str | None]) -> None:
    tensors = {new_key(key): value for key, value in load_file(file).items()}
    save_file({key: value for key, value in tensors.items() if key is not None}, file)


@pytest.mark.parametrize(
    ("name", "writer", "message"),
    [
        ("peft", broken_peft, "does not act as the adapter does"),
        ("diffusers", peft_keys, "does not act as the adapter does"),
        ("diffusers", no_metadata, "does not act as the adapter does"),
        ("comfyui", no_alpha, "does not act as the adapter does"),
        ("comfyui", swapped_streams, "does not act as the adapter does"),
        ("comfyui", unknown_key, "keys that ComfyUI would not load"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_broken_export_is_caught_and_leaves_nothing(
    name: str,
    writer: Any,
    message: str,
    dtype: Any,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(export.WRITERS, name, writer)
    base = BaseModelSettings(path=str(world / "base"), max_sequence_length=0, dtype=dtype)
    with pytest.raises(AdapterError, match=message):
        export.run(settings(world, tmp_path / "out", format=name, base=base))
    assert not list(tmp_path.iterdir())


def test_broken_fused_weights_are_caught(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "fuse", lambda transformer, lora: None)
    with refused(AdapterError, names=["fused weights"]):
        export.run(settings(world, tmp_path / "out", fused=True))
    assert not list(tmp_path.iterdir())


def test_an_adapter_without_effect_cannot_be_verified(world: Path, tmp_path: Path) -> None:
    student = read_adapter(world / "run" / "adapter")
    idle = {name: (down, torch.zeros_like(up)) for name, (down, up) in student.factors.items()}
    LoraWeights(student.rank, student.alpha, idle, student.target_modules).write(tmp_path / "idle")
    with refused(AdapterError, names=["base"]):
        export.run(settings(world, tmp_path / "out", source=str(tmp_path / "idle")))
    assert not (tmp_path / "out").exists()


def test_an_occupied_folder_is_left_alone(world: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with refused(ConfigError, value=str(tmp_path)):
        export.run(settings(world, tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_file_that_does_not_say_its_alpha(world: Path, tmp_path: Path) -> None:
    write_diffusers(read_adapter(world / "run" / "adapter"), tmp_path / "old")
    rewrite(tmp_path / "old" / DIFFUSERS_FILE, lambda key: key)
    source = str(tmp_path / "old" / DIFFUSERS_FILE)
    with refused(AdapterError, names=["pytorch_lora_weights.safetensors"]):
        export.run(settings(world, tmp_path / "out", source=source, format="peft"))
    export.run(settings(world, tmp_path / "out", source=source, format="peft", alpha=4.0))
    config = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4)


def test_a_base_that_nobody_names(world: Path, tmp_path: Path) -> None:
    lora = read_adapter(world / "run" / "adapter")
    LoraWeights(lora.rank, lora.alpha, lora.factors, lora.target_modules).write(tmp_path / "adapter")
    with refused(ConfigError, names=["--base", "adapter"]):
        export.run(settings(world, tmp_path / "out", source=str(tmp_path / "adapter"), base=None))


def test_a_base_with_t5_is_compared_without_its_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that is no run of ours says no length of prompts, and none is needed."""
    tiny_sd3(t5=True).save_pretrained(tmp_path / "base")
    student = TinyOn(SD3Backbone(tiny_sd3(t5=True), max_sequence_length=6))
    student.bank.weights("student").write(tmp_path / "adapter", base_model=str(tmp_path / "base"))
    loaded = []
    build = export.load_backbone

    def watched(*arguments: Any, **options: Any) -> Any:
        loaded.append(build(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(export, "load_backbone", watched)
    export.run(ExportSettings(source=str(tmp_path / "adapter"), out=tmp_path / "out"))
    assert (tmp_path / "out" / DIFFUSERS_FILE).is_file()
    assert [each.pipe.text_encoder_3 for each in loaded] == [None, None]


def test_a_base_is_named_only_where_others_know_it(world: Path, tmp_path: Path) -> None:
    def named(source: Path, out: str) -> str | None:
        export.run(settings(world, tmp_path / out, source=str(source), format="peft"))
        name: str | None = json.loads((tmp_path / out / CONFIG_FILE).read_text())["base_model_name_or_path"]
        return name

    assert named(world / "run", "local") is None
    read_adapter(world / "run" / "adapter").write(tmp_path / "published", "owner/base")
    assert named(tmp_path / "published", "hub") == "owner/base"


def test_a_slightly_wrong_alpha_is_caught_in_half_precision_too(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weaker(lora: LoraWeights, folder: Path) -> None:
        LoraWeights(lora.rank, 0.85 * lora.alpha, lora.factors, lora.target_modules).write(folder)

    monkeypatch.setitem(export.WRITERS, "peft", weaker)
    base = BaseModelSettings(path=str(world / "base"), max_sequence_length=0, dtype="bfloat16")
    with refused(AdapterError, names=["peft"]):
        export.run(settings(world, tmp_path / "out", format="peft", base=base))
