"""The names of the original SD3 checkpoint: exact both ways, and inverse to diffusers' conversion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from errors import refused
from flow_opd.adapters.formats.mmdit import (
    dotted_diffusers,
    dotted_original,
    from_diffusers,
    original_state,
    to_diffusers,
)
from flow_opd.adapters.lora import Factors
from flow_opd.config.common import LoraSettings
from flow_opd.errors import AdapterError

WIDTH = 8
QKV = ("to_q", "to_k", "to_v")


def transformer(dual: tuple[int, ...] = (0,)) -> SD3Transformer2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=8,
            pooled_projection_dim=16,
            pos_embed_max_size=4,
            qk_norm="rms_norm",
            dual_attention_layers=dual,
        )


def factors(seed: int, height: int = WIDTH, width: int = WIDTH, rank: int = 2, alpha: float = 3.0) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rank, width, generator=draw), torch.randn(height, rank, generator=draw), alpha)


def delta(part: Factors) -> Tensor:
    return part.scale * (part.up @ part.down)


def linears(model: SD3Transformer2DModel) -> dict[str, torch.nn.Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}


@pytest.mark.parametrize("dual", [(), (0,)])
def test_the_state_is_the_inverse_of_diffusers_own_conversion(dual: tuple[int, ...]) -> None:
    state = transformer(dual).state_dict()
    back = convert_sd3_transformer_checkpoint_to_diffusers(original_state(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_a_lora_on_every_linear_layer_moves_as_the_weights_do() -> None:
    """W + delta, converted as a checkpoint, is W converted + delta converted; swaps and fusions included."""
    model = transformer()
    state = model.state_dict()
    parts = {
        name: factors(seed, layer.out_features, layer.in_features, rank=1 + seed % 3)
        for seed, (name, layer) in enumerate(linears(model).items())
    }
    changed = {
        name: tensor + delta(parts[name.removesuffix(".weight")])
        if name.removesuffix(".weight") in parts
        else tensor
        for name, tensor in state.items()
    }
    moved = from_diffusers(parts)
    before, after = original_state(state), original_state(changed)
    for name, tensor in before.items():
        part = moved.pop(name.removesuffix(".weight"), None)
        expected = tensor if part is None else tensor + delta(part)
        torch.testing.assert_close(after[name], expected, atol=1e-5, rtol=1e-5)
    assert not moved
    again = to_diffusers(from_diffusers(parts))
    assert again.keys() == parts.keys()
    for name, part in parts.items():
        torch.testing.assert_close(delta(again[name]), delta(part), atol=1e-6, rtol=1e-6)
        assert again[name].rank == part.rank


@settings(deadline=None, max_examples=30)
@given(
    st.sets(st.sampled_from(QKV), min_size=1),
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1.0, 3.0, 8.0])), min_size=3, max_size=3),
)
def test_fused_factors_hold_the_deltas_of_their_thirds(present: set[str], forms: Any) -> None:
    parts = {
        f"transformer_blocks.3.attn.{name}": factors(seed, rank=forms[seed][0], alpha=forms[seed][1])
        for seed, name in enumerate(QKV)
        if name in present
    }
    ((name, fused),) = from_diffusers(parts).items()
    assert name == "joint_blocks.3.x_block.attn.qkv"
    assert fused.rank == sum(part.rank for part in parts.values())
    for place, block in enumerate(delta(fused).chunk(3)):
        part = parts.get(f"transformer_blocks.3.attn.{QKV[place]}")
        torch.testing.assert_close(block, torch.zeros_like(block) if part is None else delta(part))


def test_a_shared_down_is_split_and_fused_without_growth() -> None:
    fused = factors(0, height=3 * WIDTH, rank=4)
    thirds = to_diffusers({"joint_blocks.0.x_block.attn.qkv": fused})
    for name, block in zip(QKV, delta(fused).chunk(3), strict=True):
        assert torch.equal(delta(thirds[f"transformer_blocks.0.attn.{name}"]), block)
    again = from_diffusers(thirds)["joint_blocks.0.x_block.attn.qkv"]
    assert torch.equal(again.down, fused.down)
    assert torch.equal(again.up, fused.up)
    assert again.alpha == fused.alpha


def test_a_third_without_effect_stays_without_effect() -> None:
    up = torch.cat([torch.zeros(WIDTH, 2), torch.ones(2 * WIDTH, 2)])
    thirds = to_diffusers({"joint_blocks.0.x_block.attn.qkv": Factors(torch.ones(2, WIDTH), up, 2.0)})
    assert not delta(thirds["transformer_blocks.0.attn.to_q"]).any()
    assert delta(thirds["transformer_blocks.0.attn.to_k"]).all()


def test_names_without_dots() -> None:
    assert dotted_original("joint_blocks_12_context_block_adaLN_modulation_1") == (
        "joint_blocks.12.context_block.adaLN_modulation.1"
    )
    assert dotted_original("final_layer_linear") == "final_layer.linear"
    assert dotted_diffusers("transformer_blocks_3_attn_add_q_proj") == "transformer_blocks.3.attn.add_q_proj"
    assert dotted_diffusers("transformer_blocks.3.ff.net.0.proj") == "transformer_blocks.3.ff.net.0.proj"
    assert dotted_original("double_blocks_0_img_attn_qkv") is None
    assert dotted_original("joint_blocks_0_x_block_nothing") is None


def test_heights_that_cannot_be_fused_or_split() -> None:
    with refused(AdapterError, value=10):
        to_diffusers({"joint_blocks.0.x_block.attn.qkv": factors(0, height=10)})
    parts = {
        "transformer_blocks.0.attn.to_q": factors(0),
        "transformer_blocks.0.attn.to_k": factors(1, height=4),
    }
    with refused(AdapterError, value=[8, 4]):
        from_diffusers(parts)


def test_every_name_exists_in_the_true_medium_model() -> None:
    """Stable Diffusion 3.5 Medium without its weights: 24 layers, 13 of them with a second attention."""
    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=16,  # 384 in truth; it is a table without a LoRA
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
    settings = LoraSettings()
    targeted = {name: layer for name, layer in linears(model).items() if settings.targets(name)}
    assert len(targeted) == 191
    parts = {
        name: Factors(torch.rand(32, layer.in_features), torch.zeros(layer.out_features, 32), 64.0)
        for name, layer in targeted.items()
    }
    original = original_state(model.state_dict())
    fused = from_diffusers(parts)
    assert len(fused) == 24 * 2 + 24 + 23
    for name, part in fused.items():
        assert original[f"{name}.weight"].shape == (part.up.shape[0], part.down.shape[1])
    assert fused["joint_blocks.12.context_block.attn.qkv"].rank == 96
