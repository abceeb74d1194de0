"""Files for diffusers and ComfyUI: they must have their full effect where they are loaded."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from errors import refused
from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.formats.reading import read_adapter
from flow_opd.adapters.formats.writing import COMFYUI_FILE, DIFFUSERS_FILE, write_comfyui, write_diffusers
from flow_opd.adapters.lora import LoraWeights
from flow_opd.errors import AdapterError


@pytest.fixture
def bare(backbone: Any) -> SD3Transformer2DModel:
    return deepcopy(backbone.transformer)


@pytest.fixture
def folder(bare: SD3Transformer2DModel, bank: AdapterBank, tmp_path: Path) -> Path:
    """The student (rank 4, alpha 8) as a file of diffusers."""
    write_diffusers(bank.weights("student"), tmp_path / "diffusers")
    return tmp_path / "diffusers"


def loaded(bare: SD3Transformer2DModel, folder: Path, inputs: Any) -> torch.Tensor:
    """The velocity after the pipeline's own steps: lora_state_dict, then load_lora_into_transformer."""
    tensors, metadata = StableDiffusion3Pipeline.lora_state_dict(str(folder), return_lora_metadata=True)
    StableDiffusion3Pipeline.load_lora_into_transformer(
        tensors, transformer=bare, adapter_name="student", metadata=metadata
    )
    return bare(**inputs).sample


def assert_same(lora: LoraWeights, other: LoraWeights) -> None:
    """The same factors, bit for bit, and the same scale."""
    assert (lora.rank, lora.alpha) == (other.rank, other.alpha)
    assert lora.factors.keys() == other.factors.keys()
    for module, (down, up) in lora.factors.items():
        assert torch.equal(down, other.factors[module][0]), module
        assert torch.equal(up, other.factors[module][1]), module


def test_diffusers_loads_it_exactly_with_alpha_other_than_rank(
    bare: Any, folder: Path, backbone: Any, inputs: Any
) -> None:
    without = bare(**inputs).sample
    expected = backbone.transformer(**inputs).sample
    assert torch.equal(loaded(bare, folder, inputs), expected)
    assert not torch.allclose(without, expected, atol=1e-2)


def test_without_metadata_diffusers_takes_alpha_for_rank(
    bare: Any, folder: Path, backbone: Any, inputs: Any
) -> None:
    """The trap that the metadata is there for; if this fails, diffusers has changed."""
    save_file(load_file(folder / DIFFUSERS_FILE), folder / DIFFUSERS_FILE)
    difference = loaded(bare, folder, inputs) - backbone.transformer(**inputs).sample
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("write", [write_diffusers, write_comfyui])
def test_what_was_written_is_read_again_bit_for_bit(write: Any, bank: AdapterBank, tmp_path: Path) -> None:
    student = bank.weights("student")
    write(student, tmp_path / "out")
    assert_same(read_adapter(tmp_path / "out"), student)


def test_a_comfyui_file_has_the_keys_of_the_original_checkpoint(bank: AdapterBank, tmp_path: Path) -> None:
    write_comfyui(bank.weights("student"), tmp_path)
    tensors = load_file(tmp_path / COMFYUI_FILE)
    fused = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    assert tensors[f"{fused}.lora_down.weight"].shape == (12, 32)
    assert tensors[f"{fused}.lora_up.weight"].shape == (96, 12)
    assert tensors[f"{fused}.alpha"].item() == 24.0  # alpha / rank stays 8 / 4
    assert tensors["lora_unet_joint_blocks_1_x_block_attn_proj.alpha"].item() == 8.0
    assert "lora_unet_joint_blocks_1_context_block_attn_proj.alpha" not in tensors  # the last block has none
    assert len(tensors) == 3 * (2 * 2 + 3)


def test_comfyui_files_are_of_sd3_only(tmp_path: Path) -> None:
    other = LoraWeights(
        2, 2.0, {"single_transformer_blocks.0.proj_mlp": (torch.ones(2, 4), torch.ones(8, 2))}
    )
    with refused(AdapterError, value=["single_transformer_blocks.0.proj_mlp"]):
        write_comfyui(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
