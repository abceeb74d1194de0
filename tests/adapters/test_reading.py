"""Adapters as others publish them: every form must have the effect that its own tool gives it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_formats import assert_same

from errors import refused
from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.formats.reading import adapter_files, read_adapter, weights_file
from flow_opd.adapters.formats.writing import DIFFUSERS_FILE, METADATA_KEY, write_comfyui, write_diffusers
from flow_opd.adapters.lora import CONFIG_FILE, WEIGHTS_FILE, LoraWeights
from flow_opd.config.common import ATTENTION_PROJECTIONS
from flow_opd.errors import AdapterError

# What the first releases of PEFT wrote for a diffusion model, and what later ones add.
OLD_CONFIG = {
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "revision": None,
    "target_modules": list(ATTENTION_PROJECTIONS),
    "task_type": None,
}
LATER_CONFIG = OLD_CONFIG | {
    "alpha_pattern": {},
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "init_lora_weights": "gaussian",
    "layer_replication": None,
    "loftq_config": {},
    "lora_bias": False,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "rank_pattern": {},
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


@pytest.fixture
def student(bank: AdapterBank) -> LoraWeights:
    """Rank 4, alpha 8."""
    return bank.weights("student")


@pytest.fixture
def peft_folder(student: LoraWeights, tmp_path: Path) -> Path:
    student.write(tmp_path / "student", "owner/base")
    return tmp_path / "student"


def rename(file: Path, old: str, new: str, *, metadata: dict[str, str] | None = None) -> None:
    tensors = load_file(file)
    save_file({key.replace(old, new): value for key, value in tensors.items()}, file, metadata=metadata)


@pytest.mark.parametrize("config", [OLD_CONFIG, LATER_CONFIG], ids=["old", "later"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_published_peft_folders(
    config: dict[str, Any], dtype: torch.dtype, peft_folder: Path, student: LoraWeights
) -> None:
    (peft_folder / CONFIG_FILE).write_text(json.dumps(config))
    tensors = {key: value.to(dtype) for key, value in load_file(peft_folder / WEIGHTS_FILE).items()}
    save_file(tensors, peft_folder / WEIGHTS_FILE)
    lora = read_adapter(peft_folder)
    assert (lora.rank, lora.alpha, lora.base_model, lora.notes) == (4, 8.0, None, ())
    assert lora.target_modules == tuple(sorted(ATTENTION_PROJECTIONS))
    for module, (down, up) in lora.factors.items():
        assert torch.equal(down, student.factors[module][0].to(dtype).float())
        assert torch.equal(up, student.factors[module][1].to(dtype).float())


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        ({"target_modules": r".*attn\.(to_q|add_v_proj)"}, []),
        ({"target_modules": ["to_q", "to_v"], "exclude_modules": r".*0\.attn\.to_v"}, []),
        ({"target_modules": ["to_q", "to_v"], "use_rslora": True}, []),
        (
            {"target_modules": ["to_q", "to_v"], "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_v": 1}},
            ["ranks differ by module (2 to 4)", "alpha / rank differs by module (0.25, 4)"],
        ),
        (
            {"target_modules": ["to_q", "to_v"], "rank_pattern": {"to_q": 2}, "use_rslora": True},
            ["ranks", "alpha"],
        ),
    ],
    ids=["regex", "exclude", "rslora", "patterns", "patterns-rslora"],
)
def test_it_acts_as_in_peft(
    options: dict[str, Any], notes: list[str], backbone: Any, inputs: Any, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **options)
    theirs = get_peft_model(deepcopy(backbone.transformer), config).eval()
    theirs.save_pretrained(tmp_path)
    without = backbone.transformer(**inputs).sample
    lora = read_adapter(tmp_path)
    assert len(lora.notes) == len(notes)
    assert all(note in lora.notes[place] for place, note in enumerate(notes))
    bank = AdapterBank(backbone)
    bank.put("theirs", lora)
    with bank.using("theirs"):
        ours = backbone.transformer(**inputs).sample
    expected = theirs(**inputs).sample
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (expected - without).abs().max() > 0.01


def test_a_peft_folder_below_and_its_files(peft_folder: Path, student: LoraWeights) -> None:
    assert_same(read_adapter(peft_folder.parent), student)
    assert adapter_files(peft_folder.parent) == [peft_folder / WEIGHTS_FILE, peft_folder / CONFIG_FILE]
    student.write(peft_folder.parent / "another")
    with pytest.raises(AdapterError, match="more than one adapter"):
        weights_file(peft_folder.parent)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("transformer.", "base_model.model."),
        (".lora_A.", ".lora_down."),
    ],
    ids=["PEFT keys", "kohya sides"],
)
def test_other_keys_of_diffusers_modules(old: str, new: str, student: LoraWeights, tmp_path: Path) -> None:
    write_diffusers(student, tmp_path)
    rename(tmp_path / DIFFUSERS_FILE, old, new)
    rename(tmp_path / DIFFUSERS_FILE, ".lora_B.", ".lora_up.")
    assert_same(read_adapter(tmp_path, alpha=8.0), student)


def test_one_trainer_keys_with_alpha(student: LoraWeights, tmp_path: Path) -> None:
    tensors = {}
    for module, (down, up) in student.factors.items():
        key = "lora_transformer_" + module.replace(".", "_")
        tensors |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.alpha": torch.tensor(8.0),
        }
    save_file(tensors, tmp_path / "one_trainer.safetensors")
    assert_same(read_adapter(tmp_path / "one_trainer.safetensors"), student)
    assert_same(read_adapter(tmp_path), student)


def test_original_names_with_dots(student: LoraWeights, tmp_path: Path) -> None:
    write_comfyui(student, tmp_path)
    (file,) = tmp_path.iterdir()
    tensors = load_file(file)
    dotted = {
        key.replace("lora_unet_joint_blocks_", "diffusion_model.joint_blocks.")
        .replace("_x_block_", ".x_block.")
        .replace("_context_block_", ".context_block.")
        .replace("attn_", "attn."): value
        for key, value in tensors.items()
    }
    save_file(dotted, file)
    assert_same(read_adapter(file), student)


def test_a_kohya_file_with_one_down_for_the_three(student: LoraWeights, tmp_path: Path) -> None:
    """As kohya's scripts train: the fused layer has the rank of the others; each third gets a copy of A."""
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 32, generator=draw), torch.randn(96, 4, generator=draw)
    key = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    tensors = {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
        f"{key}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "kohya.safetensors")
    lora = read_adapter(tmp_path / "kohya.safetensors")
    assert (lora.rank, lora.alpha) == (4, 2.0)
    deltas = [lora.delta(f"transformer_blocks.0.attn.{name}") for name in ("to_q", "to_k", "to_v")]
    torch.testing.assert_close(torch.cat(deltas), 0.5 * up @ down)


def test_a_file_without_alpha_needs_one(student: LoraWeights, bank: AdapterBank, tmp_path: Path) -> None:
    write_diffusers(student, tmp_path)
    rename(tmp_path / DIFFUSERS_FILE, "", "")
    with refused(AdapterError, names=["pytorch_lora_weights.safetensors"]):
        read_adapter(tmp_path)
    lora = read_adapter(tmp_path, alpha=8.0)
    assert_same(lora, student)
    bank.put("old-file", lora)


def test_a_file_with_alpha_for_some_modules(student: LoraWeights, tmp_path: Path) -> None:
    write_comfyui(student, tmp_path)
    (file,) = tmp_path.iterdir()
    tensors = load_file(file)
    tensors.pop("lora_unet_joint_blocks_0_x_block_attn_proj.alpha")
    save_file(tensors, file)
    for alpha in (None, 8.0):
        with refused(AdapterError, names=["comfyui_lora.safetensors"]):
            read_adapter(file, alpha=alpha)


def test_alpha_that_contradicts_the_file(student: LoraWeights, peft_folder: Path, tmp_path: Path) -> None:
    write_diffusers(student, tmp_path / "diffusers")
    for path in (peft_folder, tmp_path / "diffusers"):
        with refused(AdapterError, value=4.0):
            read_adapter(path, alpha=4.0)
        assert read_adapter(path, alpha=8.0).alpha == 8.0


def test_metadata_that_cannot_be_read(student: LoraWeights, tmp_path: Path) -> None:
    write_diffusers(student, tmp_path)
    for metadata in ("{", "[]", '{"unet.r": 4}'):
        rename(tmp_path / DIFFUSERS_FILE, "", "", metadata={METADATA_KEY: metadata})
        with refused(AdapterError, value={"r": None, "lora_alpha": None, "target_modules": None}):
            read_adapter(tmp_path)


def test_rank_of_the_metadata(student: LoraWeights, tmp_path: Path) -> None:
    write_diffusers(student, tmp_path)
    config = {"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.target_modules": ["to_q"]}
    rename(tmp_path / DIFFUSERS_FILE, "", "", metadata={METADATA_KEY: json.dumps(config)})
    with refused(AdapterError, value="A [4, 32], B [32, 4]"):
        read_adapter(tmp_path)


WEIGHT, WIDE = torch.ones(2, 4), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_te1_text_model.lora_down.weight": WEIGHT}, "text encoders"),
        ({"text_encoder.layers.0.lora_A.weight": WEIGHT}, "text encoders"),
        ({"lora_unet_joint_blocks_0_x_block_attn_proj.dora_scale": WEIGHT}, "unknown keys.*dora_scale"),
        ({"lora_unet_joint_blocks_0_x_block_attn_proj.hada_w1_a": WEIGHT}, "unknown keys.*hada_w1_a"),
        ({"transformer_blocks.0.attn.to_q.lora_A.weight": WEIGHT}, "unknown keys.*transformer_blocks"),
        ({"transformer.x.lora_A.weight": WEIGHT}, r"modules without A or B.*'x'"),
        (
            {"transformer.x.lora_A.weight": WEIGHT, "transformer.x.lora_B.weight": WEIGHT},
            "of different ranks.*'x'",
        ),
        (
            {"transformer.x.lora_A.weight": WEIGHT[:, :, None], "transformer.x.lora_B.weight": WIDE},
            "of different ranks.*'x'",
        ),
        (
            {"transformer.x.lora_A.weight": WEIGHT, "transformer.x.lora_B.weight": WIDE}
            | {"lora_unet_y.lora_down.weight": WEIGHT, "lora_unet_y.lora_up.weight": WIDE},
            r"prefixes': \['lora_unet_', 'transformer\.'\]",
        ),
        (
            {
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": WEIGHT,
                "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": WIDE,
            },
            "modules that Stable Diffusion 3 does not have.*double_blocks",
        ),
        ({}, r"'prefixes': \[\]"),
    ],
)
def test_files_of_another_kind(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path, alpha=1.0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "not an adapter"),
        (["a.safetensors", "b.safetensors"], "more than one adapter.*name one of .*a.safetensors"),
        (["adapter_model.bin", CONFIG_FILE], "could run code.*adapter_model.bin"),
        (["pytorch_lora_weights.bin"], "could run code"),
    ],
)
def test_folders_without_one_adapter(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path)


def test_a_file_of_torch_is_never_opened(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "adapter.bin")
    with refused(AdapterError, names=["torch.save", "adapter.bin", "adapter.bin"]):
        read_adapter(tmp_path / "adapter.bin")


def test_a_config_alone_says_what_is_missing(peft_folder: Path) -> None:
    (peft_folder / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterError, match=WEIGHTS_FILE):
        read_adapter(peft_folder)


def test_alpha_keys_that_contradict_or_have_no_place(
    student: LoraWeights, peft_folder: Path, tmp_path: Path
) -> None:
    write_diffusers(student, tmp_path / "diffusers")
    file = tmp_path / "diffusers" / DIFFUSERS_FILE
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    for alpha, fine in ((8.0, True), (4.0, False)):
        key = "transformer.transformer_blocks.0.attn.to_q.alpha"
        save_file(load_file(file) | {key: torch.tensor(alpha)}, file, metadata=header)
        if fine:
            assert_same(read_adapter(file), student)
        else:
            with refused(AdapterError, value={4.0}):
                read_adapter(file)
    key = "base_model.model.transformer_blocks.0.attn.to_q.alpha"
    weights = peft_folder / WEIGHTS_FILE
    save_file(load_file(weights) | {key: torch.tensor(4.0)}, weights)
    with refused(AdapterError, names=["to_q.alpha"]):
        read_adapter(peft_folder)
