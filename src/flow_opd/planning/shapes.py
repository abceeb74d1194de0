"""A base with its adapters as shapes: the project's own backbone, bank and policies on tensors without data.

Fake tensors carry shape, type and device; every operation on them gives what the real one would give, but
computes and stores nothing. They say that they are on the CPU, where PyTorch takes fused attention as it
does on a card; plain meta tensors would take the one that writes out the whole L x L matrix.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    T5Config,
    T5EncoderModel,
)

from flow_opd.backbones.compute import keep_float32_between_blocks
from flow_opd.backbones.loading import DTYPES, backbone_class, dtypes_of
from flow_opd.backbones.pipeline import DiffusersBackbone
from flow_opd.config.common import BaseModelSettings, LoraSettings
from flow_opd.errors import ConfigError
from flow_opd.planning.architectures import Architecture, Network
from flow_opd.planning.meter import Meter, Span
from flow_opd.planning.shared_adapters import SharedAdapters
from flow_opd.quiet import quiet_loading
from flow_opd.types import Conditioning, Prompt

DECODE = "decode"  # part of a measurement: images from latents
_OF_DIFFUSERS = {
    "AutoencoderKL": AutoencoderKL,
    "FluxTransformer2DModel": FluxTransformer2DModel,
    "SD3Transformer2DModel": SD3Transformer2DModel,
}
_OF_TRANSFORMERS = {
    "CLIPModel": (CLIPModel, CLIPConfig),
    "CLIPTextModel": (CLIPTextModel, CLIPTextConfig),
    "CLIPTextModelWithProjection": (CLIPTextModelWithProjection, CLIPTextConfig),
    "Mask2FormerForUniversalSegmentation": (Mask2FormerForUniversalSegmentation, Mask2FormerConfig),
    "T5EncoderModel": (T5EncoderModel, T5Config),
}
_NOT_SHAPES = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path")


def build_network(network: Network, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Returns a network on the meta device, frozen.

    Raises:
        ConfigError: if its class is not known here.
    """
    with torch.device("meta"), quiet_loading():
        if network.class_name in _OF_DIFFUSERS:
            module: nn.Module = _OF_DIFFUSERS[network.class_name].from_config(network.config)
        elif network.class_name in _OF_TRANSFORMERS:
            kind, settings = _OF_TRANSFORMERS[network.class_name]
            shapes = {key: value for key, value in network.config.items() if key not in _NOT_SHAPES}
            module = kind(settings(**shapes))
        else:
            known = sorted([*_OF_DIFFUSERS, *_OF_TRANSFORMERS])
            raise ConfigError(
                "the base has a part that cannot be planned",
                value=network.class_name,
                allowed=", ".join(known),
                fix="plan a base that is made of these",
            )
        return module.to(dtype).requires_grad_(False).eval()


def count(module: nn.Module) -> int:
    """Returns the numbers that a network keeps: its parameters, and buffers that a checkpoint holds."""
    kept = set(module.state_dict())
    return sum(
        tensor.numel()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if name in kept
    )


class ShapeBackbone:
    """A backbone that knows of a prompt only how many tokens it has; the rest is the real one's work."""

    def __init__(
        self,
        inner: DiffusersBackbone,
        *,
        text: Tensor,
        pooled: Tensor,
        meter: Meter,
    ) -> None:
        """Keeps the parts.

        Args:
            inner: the real backbone around a pipeline of fake tensors.
            text, pooled: one embedded prompt, [1, L, D] and [1, P].
            meter: reads the decoding of images as a part of its own, 'decode'.
        """
        self.inner = inner
        self.latent_shape: tuple[int, int, int] = inner.latent_shape
        self.device = inner.device
        self.text = text
        self.pooled = pooled
        self.meter = meter

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns a conditioning of the right shape; one row stands for all, so that it costs nothing."""
        rows = len(prompts)
        return Conditioning(
            self.text.expand(rows, -1, -1),
            self.pooled.expand(rows, -1),
            tuple(prompt.task for prompt in prompts),
        )

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the velocity, [M, C, H, W], float32."""
        return self.inner.velocity(latents, sigma, conditioning)

    def encode_images(self, images: Tensor) -> Tensor:
        """Returns x0, [B, C, H, W], of images [B, 3, height, width]."""
        return self.inner.encode_images(images)

    def decode_latents(self, x0: Tensor) -> Tensor:
        """Returns images, [B, 3, height, width], of x0 [B, C, H, W]."""
        with self.meter.span(DECODE, rows=len(x0)):
            return self.inner.decode_latents(x0)

    def sigmas(self, num_steps: int) -> Tensor:
        """Returns the model's own grid of noise levels, [num_steps + 1]."""
        return self.inner.sigmas(num_steps)


@dataclass(frozen=True)
class ShapeModel:
    """One base with its adapters, ready to be run without data."""

    backbone: ShapeBackbone
    adapters: SharedAdapters
    meter: Meter
    student: str
    transformer: nn.Module  # without the adapters' wrapper
    vae: nn.Module
    known: dict[Hashable, Span]  # (kind of policy, rows) -> what its velocity took without gradients

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The student's parameters; each has a gradient already, as after the first micro-batch."""
        return self.adapters.parameters(self.student)

    def checkpointing(self, on: bool) -> None:
        """Switches gradient checkpointing of the transformer's blocks."""
        switch = "enable_gradient_checkpointing" if on else "disable_gradient_checkpointing"
        getattr(self.transformer, switch)()


def build_model(
    architecture: Architecture,
    base: BaseModelSettings,
    loras: Mapping[str, LoraSettings],
    *,
    student: str,
    vae_tiling: bool = False,
) -> ShapeModel:
    """Returns the base with its adapters on fake tensors, in the number format of the settings.

    Args:
        architecture: the networks.
        base: number format, resolution and length of the prompts.
        loras: adapter -> rank, alpha and targets.
        student: the adapter that is trained.
        vae_tiling: decodes in tiles.

    Raises:
        AdapterError: if a target names nothing in this transformer.
        ConfigError: if there is no backbone for this pipeline.
    """
    dtype = DTYPES[base.dtype]
    transformer = build_network(architecture.networks["transformer"], dtype)
    vae = build_network(architecture.networks["vae"], dtypes_of(base)["vae"])
    if dtype != torch.float32:
        keep_float32_between_blocks(transformer, backbone_kind(architecture, base).embedders)
    adapters = SharedAdapters(transformer, loras, student=student)
    config: Any = transformer.config
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in (adapters.transformer, vae):
            network.to_empty(device="cpu")
        text = torch.empty(1, text_tokens(architecture, base), config.joint_attention_dim, dtype=dtype)
        pooled = torch.empty(1, config.pooled_projection_dim, dtype=dtype)
    trained = adapters.parameters(student).values()
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    networks = (adapters.transformer, vae)
    weights = [tensor for each in networks for tensor in (*each.parameters(), *each.buffers())]
    meter = Meter([*weights, *gradients])
    if vae_tiling:
        vae.enable_tiling()  # type: ignore[operator]
    inner = _backbone(architecture, base, transformer, vae)
    inner.transformer = adapters.transformer
    inner.dtype = dtype  # else a LoRA's own format might be taken for it
    backbone = ShapeBackbone(inner, text=text, pooled=pooled, meter=meter)
    return ShapeModel(backbone, adapters, meter, student, transformer, vae, known={})


def text_tokens(architecture: Architecture, base: BaseModelSettings) -> int:
    """Returns L, the text tokens that the transformer sees.

    Raises:
        ConfigError: if there is no backbone for this pipeline.
    """
    configs = {name: network.config for name, network in architecture.encoders.items()}
    return backbone_kind(architecture, base).text_tokens(configs, base)


def backbone_kind(architecture: Architecture, base: BaseModelSettings) -> type[DiffusersBackbone]:
    """Returns the backbone of a pipeline.

    Raises:
        ConfigError: if there is none.
    """
    return backbone_class(base, {"_class_name": architecture.pipeline})


def _backbone(
    architecture: Architecture, base: BaseModelSettings, transformer: nn.Module, vae: nn.Module
) -> DiffusersBackbone:
    """Returns the real backbone, around a pipeline that has no text encoders.

    Raises:
        ConfigError: if there is no backbone for this pipeline, or it refuses the settings.
    """
    kind = backbone_kind(architecture, base)
    kind.absent_parts({}, base)  # refuses what a base of this kind does not have
    parts = {
        name: None
        for name, parameter in inspect.signature(kind.pipeline.__init__).parameters.items()
        if name != "self" and parameter.default is inspect.Parameter.empty
    }
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(architecture.scheduler)
    pipe = kind.pipeline(**{**parts, "transformer": transformer, "vae": vae, "scheduler": scheduler})
    return kind.wrap(pipe, base)
