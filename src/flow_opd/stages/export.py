"""Writes an adapter for another tool; the files are kept only if they load there to the same velocities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.formats.writing import (
    COMFYUI_FILE,
    by_comfyui,
    by_diffusers,
    by_peft,
    fuse,
    write_comfyui,
    write_diffusers,
)
from flow_opd.adapters.lora import LoraWeights
from flow_opd.backbones.compute import keep_float32_between_blocks
from flow_opd.backbones.loading import load_backbone
from flow_opd.backbones.pipeline import DiffusersBackbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.config.locations import hub_id
from flow_opd.config.options import ExportSettings
from flow_opd.errors import AdapterError, ConfigError
from flow_opd.files import atomic_folder
from flow_opd.quiet import quiet_loading
from flow_opd.runs.adapters import adapter_of, base_for, load_lora
from flow_opd.types import Conditioning

TRANSFORMER = "transformer"  # folder of the fused weights, as in a diffusers pipeline
SIGMAS = (1.0, 0.6, 0.2)  # where velocities are compared
LARGEST_SIDE = 32  # of the latents that they are compared on
TEXT_TOKENS = 8

FUSED = "fused weights"

# How much of the adapter's own effect the two may differ by; no effect at all is 1, a halved alpha .5. In
# half precision a weight that the change was added to is rounded, which a sum of two products is not.
EXACT, HALF, HALF_FOLDED = 1e-3, 0.05, 0.25


def run(settings: ExportSettings) -> Path:
    """Writes the adapter, checks it, and returns the folder; nothing is kept if the check fails.

    Raises:
        AdapterError: if the written files act otherwise than the adapter, or the adapter has no effect.
    """
    _refuse_occupied(settings.out)
    base = settings.base or base_for(settings.source, alpha=settings.alpha)
    lora = load_lora(adapter_of(settings.source), base, key="RUN", alpha=settings.alpha)
    expected = _expected(base, lora)
    with atomic_folder(settings.out) as staging:
        WRITERS[settings.format](_named(lora, base), staging)
        _compare(
            settings.format, expected, base, lambda backbone: LOADERS[settings.format](backbone, staging)
        )
        if settings.fused:
            _write_fused(lora, staging, base)
            _compare(FUSED, expected, base, lambda backbone: _reload_fused(backbone, staging))
    return settings.out


def _named(lora: LoraWeights, base: BaseModelSettings) -> LoraWeights:
    """Returns the LoRA with the name of its base, where that means something on another machine."""
    names = [name for name in (base.path, lora.base_model) if name is not None and hub_id(name)]
    return replace(lora, base_model=names[0] if names else None)


@dataclass(frozen=True)
class Expected:
    """Where velocities are compared, and what they are with and without the adapter."""

    latents: Tensor  # [M, C, H, W]
    sigma: Tensor  # [M]
    conditioning: Conditioning  # M rows
    bare: Tensor  # [M, C, H, W]
    changed: Tensor  # [M, C, H, W]

    @property
    def effect(self) -> float:
        """The largest change of a velocity by the adapter."""
        return float((self.changed - self.bare).abs().max())


def _load_peft(backbone: DiffusersBackbone, folder: Path) -> None:
    backbone.transformer = by_peft(backbone.transformer, folder)


def _load_diffusers(backbone: DiffusersBackbone, folder: Path) -> None:
    backbone.transformer = by_diffusers(backbone.pipe, folder)


def _load_comfyui(backbone: DiffusersBackbone, folder: Path) -> None:
    backbone.transformer = by_comfyui(backbone.transformer, folder / COMFYUI_FILE)


WRITERS: dict[str, Callable[[LoraWeights, Path], None]] = {
    "peft": LoraWeights.write,
    "diffusers": write_diffusers,
    "comfyui": write_comfyui,
}
LOADERS: dict[str, Callable[[DiffusersBackbone, Path], None]] = {
    "peft": _load_peft,
    "diffusers": _load_diffusers,
    "comfyui": _load_comfyui,
}


def _write_fused(lora: LoraWeights, folder: Path, base: BaseModelSettings) -> None:
    transformer = load_backbone(base, ComputeSettings(), encoders=False).pipe.transformer
    fuse(transformer, lora)
    known = base.path if hub_id(base.path) else ""  # a path of this machine means nothing elsewhere
    transformer.register_to_config(_name_or_path=known)
    transformer.save_pretrained(folder / TRANSFORMER)


def _reload_fused(backbone: DiffusersBackbone, folder: Path) -> None:
    model = type(backbone.pipe.transformer)
    loaded = model.from_pretrained(folder / TRANSFORMER, torch_dtype=backbone.dtype)
    if backbone.dtype != torch.float32:
        keep_float32_between_blocks(loaded, backbone.embedders)
    backbone.transformer = loaded.to(backbone.device).eval()


def _expected(base: BaseModelSettings, lora: LoraWeights) -> Expected:
    """Returns the velocities of our own bank on random latents and texts."""
    backbone = load_backbone(base, ComputeSettings(), encoders=False)
    config = backbone.pipe.transformer.config
    draw = torch.Generator().manual_seed(0)
    channels, height, width = backbone.latent_shape
    count = len(SIGMAS)
    latents = torch.randn(
        count, channels, min(height, LARGEST_SIDE), min(width, LARGEST_SIDE), generator=draw
    )
    sigma = torch.tensor(SIGMAS)
    conditioning = Conditioning(
        torch.randn(count, TEXT_TOKENS, config.joint_attention_dim, generator=draw),
        torch.randn(count, config.pooled_projection_dim, generator=draw),
        ("",) * count,
    )
    bank = AdapterBank(backbone)
    bank.put("exported", lora)
    with torch.no_grad():
        bare = backbone.velocity(latents, sigma, conditioning)
        with bank.using("exported"):
            changed = backbone.velocity(latents, sigma, conditioning)
    expected = Expected(latents, sigma, conditioning, bare, changed)
    if expected.effect == 0:
        raise AdapterError(
            "an adapter without any effect on this base",
            value=base.path,
            allowed="an adapter that changes velocities; without a change nothing can be verified",
            fix="export a trained adapter",
        )
    return expected


def _compare(
    what: str, expected: Expected, base: BaseModelSettings, load: Callable[[DiffusersBackbone], None]
) -> None:
    """Loads onto a fresh base and prints the largest difference of a velocity.

    Raises:
        AdapterError: if it is more than the tolerated share of the adapter's own effect.
    """
    backbone = load_backbone(base, ComputeSettings(), encoders=False)
    with quiet_loading(), torch.no_grad():
        load(backbone)
        found = backbone.velocity(expected.latents, expected.sigma, expected.conditioning)
    difference = float((found - expected.changed).abs().max())
    effect = expected.effect
    Console(stderr=True).print(
        f"{what}: loaded again, largest velocity difference {difference:.2e} "
        f"(the adapter changes velocities by up to {effect:.2e})",
        highlight=False,
        soft_wrap=True,
    )
    tolerated = EXACT if base.dtype == "float32" else HALF_FOLDED if what in ("comfyui", FUSED) else HALF
    if not difference <= tolerated * effect:
        raise AdapterError(
            f"the {what} export does not act as the adapter does, so its files were removed",
            value=f"largest velocity difference {difference:.2e}, effect of the adapter {effect:.2e}",
            allowed=f"a difference of {tolerated:g} of the effect",
            fix="check with base.dtype=float32 first; if that fails too, it is a bug of the export",
        )


def _refuse_occupied(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            "the folder of an export exists already",
            value=str(out),
            allowed="a new or empty folder",
            fix="choose another --out, or remove the old export",
        )
