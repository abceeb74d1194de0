"""diffusers LoRA files: they must have their full effect when diffusers loads them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.formats import DIFFUSERS_FILE, diffusers_to_peft, peft_to_diffusers, read_diffusers
from flow_opd.adapters.lora import CONFIG_FILE, WEIGHTS_FILE
from flow_opd.errors import AdapterError


@pytest.fixture
def bare(backbone: Any) -> SD3Transformer2DModel:
    return deepcopy(backbone.transformer)


@pytest.fixture
def folder(bare: SD3Transformer2DModel, bank: AdapterBank, tmp_path: Path) -> Path:
    """The student (rank 4, alpha 8), converted PEFT -> diffusers."""
    bank.save("student", tmp_path / "peft")
    peft_to_diffusers(tmp_path / "peft", tmp_path / "diffusers")
    return tmp_path / "diffusers"


def loaded(bare: SD3Transformer2DModel, folder: Path, inputs: Any) -> torch.Tensor:
    """The velocity after the pipeline's own steps: lora_state_dict, then load_lora_into_transformer."""
    tensors, metadata = StableDiffusion3Pipeline.lora_state_dict(str(folder), return_lora_metadata=True)
    StableDiffusion3Pipeline.load_lora_into_transformer(
        tensors, transformer=bare, adapter_name="student", metadata=metadata
    )
    return bare(**inputs).sample


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


def test_round_trip_is_bit_equal(folder: Path, tmp_path: Path) -> None:
    diffusers_to_peft(folder, tmp_path / "again")
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "peft" / name).read_bytes()


def test_file_without_metadata_needs_alpha(folder: Path, bank: AdapterBank) -> None:
    save_file(load_file(folder / DIFFUSERS_FILE), folder / DIFFUSERS_FILE)
    with pytest.raises(AdapterError, match="its alpha is unknown"):
        read_diffusers(folder)
    lora = read_diffusers(folder, alpha=8.0)
    assert (lora.rank, lora.alpha) == (4, 8.0)
    assert all(torch.equal(delta, lora.delta(module)) for module, delta in bank.deltas("student").items())
    bank.put("old-file", lora)


def test_alpha_that_contradicts_the_metadata(folder: Path) -> None:
    with pytest.raises(AdapterError, match="contradicts"):
        read_diffusers(folder, alpha=4.0)
    assert read_diffusers(folder, alpha=8.0).alpha == 8.0


def test_metadata_that_cannot_be_read(folder: Path) -> None:
    tensors = load_file(folder / DIFFUSERS_FILE)
    for metadata in ("{", "[]", '{"unet.r": 4}'):
        save_file(tensors, folder / DIFFUSERS_FILE, metadata={"lora_adapter_metadata": metadata})
        with pytest.raises(AdapterError, match="not the config of a LoRA"):
            read_diffusers(folder)


def test_peft_file_under_the_diffusers_name(folder: Path) -> None:
    """Diffusers loads such a file without any effect, with a mere warning."""
    tensors = load_file(folder / DIFFUSERS_FILE)
    renamed = {key.replace("transformer.", "base_model.model.", 1): value for key, value in tensors.items()}
    save_file(renamed, folder / DIFFUSERS_FILE)
    with pytest.raises(AdapterError, match="unknown keys"):
        read_diffusers(folder, alpha=8.0)
