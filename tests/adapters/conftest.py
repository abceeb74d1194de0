"""A real SD3 transformer of 2 layers with 4 heads of 8, and what the adapter tests feed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from flow_opd.adapters.bank import AdapterBank
from flow_opd.config.common import LoraSettings


def make_transformer(heads: int = 4) -> SD3Transformer2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=heads,
            joint_attention_dim=16,
            caption_projection_dim=8 * heads,
            pooled_projection_dim=24,
            pos_embed_max_size=8,
        ).eval()


@dataclass
class TinyBackbone:
    transformer: nn.Module


@pytest.fixture
def backbone() -> TinyBackbone:
    return TinyBackbone(make_transformer())


@pytest.fixture
def wide_backbone() -> TinyBackbone:
    return TinyBackbone(make_transformer(heads=6))


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=generator),
        "pooled_projections": torch.randn(2, 24, generator=generator),
        "timestep": torch.tensor([500.0, 900.0]),
    }


@pytest.fixture
def fill() -> Callable[[AdapterBank, str, LoraSettings, int], None]:
    """Adds an adapter whose B is not zero, so that it changes the velocity."""

    def add(bank: AdapterBank, name: str, settings: LoraSettings, seed: int) -> None:
        bank.add(name, settings, seed)
        generator = torch.Generator().manual_seed(seed)
        bank.load_state(
            name,
            {
                key: 0.2 * torch.randn(value.shape, generator=generator)
                for key, value in bank.state(name).items()
            },
        )

    return add


@pytest.fixture
def bank(backbone: TinyBackbone, fill: Callable[..., None]) -> AdapterBank:
    """Student (rank 4, alpha 8) and teacher (rank 2, alpha 6), with the student in training."""
    made = AdapterBank(backbone)
    fill(made, "student", LoraSettings(rank=4, alpha=8.0), 1)
    fill(made, "teacher", LoraSettings(rank=2, alpha=6.0), 2)
    made.train("student")
    return made
