"""Stable Diffusion 3 in its true shapes with random weights, in memory: base, texts and adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import nn

from flow_opd.adapters.bank import AdapterBank
from flow_opd.backbones.compute import prepare
from flow_opd.backbones.loading import DTYPES
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import BaseModelSettings, LoraSettings, TrainingComputeSettings
from flow_opd.planning.architectures import Architecture, Network, read_architecture
from flow_opd.planning.shapes import build_network, text_tokens
from flow_opd.runs.training import STUDENT
from flow_opd.types import Conditioning, Prompt

WEIGHT_STD, FACTOR_STD = 0.02, 0.01
PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")


def random_network(network: Network, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Returns a network with small normal weights, drawn on its device."""
    module = build_network(network, dtype).to_empty(device=device)
    draw = torch.Generator(device).manual_seed(0)
    for tensor in [*module.parameters(), *module.buffers()]:
        with torch.no_grad():
            tensor.normal_(0, WEIGHT_STD, generator=draw)
    return module


def first_layers(network: Network, layers: int) -> Network:
    """Returns the first `layers` blocks of a transformer."""
    dual = [each for each in network.config["dual_attention_layers"] if each < layers]
    return Network(
        network.class_name, {**network.config, "num_layers": layers, "dual_attention_layers": dual}
    )


def random_backbone(
    base: BaseModelSettings, compute: TrainingComputeSettings, device: torch.device, layers: int | None = None
) -> SD3Backbone:
    """Returns a base of the shapes that `base` names, ready for adapters; it has no text encoders and no VAE.

    Args:
        base: shapes, number format, resolution.
        compute: gradient checkpointing, compiling and the like.
        device: where it lies.
        layers: takes only the first blocks of the transformer.
    """
    architecture = read_architecture(base)
    network = architecture.networks["transformer"]
    pipe = StableDiffusion3Pipeline(
        transformer=random_network(
            network if layers is None else first_layers(network, layers), DTYPES[base.dtype], device
        ),
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(architecture.scheduler),
        vae=build_network(architecture.networks["vae"]),  # tells the size of latents; it has no weights
        **dict.fromkeys(PARTS),
    )
    backbone = SD3Backbone.wrap(pipe, base)
    backbone.device = device
    backbone.free_vae()
    prepare(backbone, compute)
    return backbone


class RandomTexts:
    """Embeddings of the true widths; a text gives the same ones always."""

    def __init__(self, architecture: Architecture, base: BaseModelSettings) -> None:
        """Takes the widths from the transformer."""
        config: Any = architecture.networks["transformer"].config
        self.shape = (text_tokens(architecture, base), config["joint_attention_dim"])
        self.pooled = config["pooled_projection_dim"]
        self.dtype = DTYPES[base.dtype]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns random conditioning, B rows."""
        draws = [torch.Generator().manual_seed(len(prompt.text)) for prompt in prompts]
        embeds = torch.stack([torch.randn(self.shape, generator=draw) for draw in draws])
        pooled = torch.stack([torch.randn(self.pooled, generator=draw) for draw in draws])
        return Conditioning(
            embeds.to(self.dtype), pooled.to(self.dtype), tuple(prompt.task for prompt in prompts)
        )


def random_bank(backbone: SD3Backbone, names: Sequence[str], lora: LoraSettings) -> AdapterBank:
    """Returns a bank with a fresh student, and adapters with random factors under the other names."""
    bank = AdapterBank(backbone)
    bank.add(STUDENT, lora, 0)
    for seed, name in enumerate(names, start=1):
        bank.add(name, lora, seed)
        draw = torch.Generator().manual_seed(seed)
        state = bank.state(name)
        bank.load_state(
            name, {key: FACTOR_STD * torch.randn(value.shape, generator=draw) for key, value in state.items()}
        )
    bank.train(STUDENT)
    return bank
