"""From a base's name to its backbone: which kind it is, what of it is loaded, and how it computes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import nn

from flow_opd.backbones.compute import choose_device, keep_float32_between_blocks, prepare
from flow_opd.backbones.pipeline import DiffusersBackbone
from flow_opd.config.common import BackboneSettings, BaseModelSettings, ComputeSettings
from flow_opd.config.locations import locate_model
from flow_opd.errors import ConfigError, FlowOPDError
from flow_opd.hub import hub_errors, is_offline
from flow_opd.quiet import quiet_loading

INDEX = "model_index.json"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_backbone(
    base: BaseModelSettings, compute: ComputeSettings, *, encoders: bool = True
) -> DiffusersBackbone:
    """Returns the frozen base on its device, ready for adapters.

    Args:
        base: which one, and what of it.
        compute: on which device, and how.
        encoders: whether text encoders are loaded; without them no prompt can be encoded.

    Raises:
        ConfigError: if it cannot be had, is no pipeline that we know, or cannot be used as asked.
    """
    source = locate_model(base.path, key="base.path")
    device = choose_device(compute.device)
    trouble = hub_errors(source, what="the base in 'base.path'", revision=base.revision, offline=base.offline)
    with _load_errors(source), trouble:
        index = _pipeline_index(source, base)
        kind = backbone_class(base, index)
        absent = kind.absent_parts(index, base)
        if not encoders:
            absent |= {part: None for part in index if part.startswith(("text_encoder", "tokenizer"))}
        with quiet_loading():
            pipe = kind.pipeline.from_pretrained(
                source,
                dtype=dtypes_of(base),
                revision=base.revision,
                variant=base.variant,
                local_files_only=is_offline(base.offline),
                use_safetensors=True,
                **absent,
            )
    with quiet_loading():
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    if base.dtype != "float32":
        keep_float32_between_blocks(pipe.transformer, kind.embedders)
    backbone = kind.wrap(pipe, base)
    prepare(backbone, compute)
    return backbone


def dtypes_of(base: BaseModelSettings) -> dict[str, torch.dtype]:
    """Returns the number formats of a base's parts as diffusers takes them.

    The VAE computes in float32 whatever the rest does: rewards see what a bfloat16 decoder rounds away, and
    decoding is a small part of the work.
    """
    return {"default": DTYPES[base.dtype], "vae": torch.float32}


@contextmanager
def _load_errors(source: str) -> Iterator[None]:
    """Turns whatever the libraries raise over the files of a base into one message that says what to do."""
    try:
        yield
    except FlowOPDError:
        raise
    except Exception as fault:  # safetensors, JSON, torch, diffusers: each has errors of its own
        raise ConfigError(
            f"the base cannot be loaded ({type(fault).__name__}: {str(fault).strip()[:300]})",
            value=source,
            allowed="a complete diffusers folder in safetensors, or a hub id that can be reached",
            fix="correct base.path (and base.variant, if it is set), or copy or download the base again",
        ) from fault


def _pipeline_index(source: str, base: BaseModelSettings) -> dict[str, Any]:
    """Returns the model_index.json of a base: its pipeline class, and which parts it was saved with.

    Raises:
        ConfigError: if a folder has none.
    """
    folder = Path(source)
    file = folder / INDEX
    if not folder.exists():
        file = Path(
            huggingface_hub.hf_hub_download(
                source, INDEX, revision=base.revision, local_files_only=is_offline(base.offline)
            )
        )
    elif not file.is_file():
        raise ConfigError(
            "the base is not a diffusers folder",
            value=source,
            allowed=f"a folder with a {INDEX}, or a hub id",
            fix="point base.path at the folder that save_pretrained wrote",
        )
    index: dict[str, Any] = json.loads(file.read_text())
    return index


def backbone_class(base: BaseModelSettings, index: Mapping[str, Any]) -> type[DiffusersBackbone]:
    """Returns the backbone that a base names, or that its pipeline class has.

    Args:
        base: the settings.
        index: its model_index.json.

    Raises:
        ConfigError: if there is none.
    """
    name, known = index.get("_class_name"), BackboneSettings.kind.names()
    if base.backbone is None and name not in known:
        raise ConfigError(
            f"the base {base.path} is a pipeline of another kind",
            value=name,
            allowed=f"a {INDEX} that names one of {', '.join(sorted(known))}; or a backbone for it",
            fix="point base.path at such a base, or name a backbone in base.backbone",
        )
    chosen = (base.backbone or BackboneSettings.of(str(name))).build()
    if not issubclass(chosen, DiffusersBackbone):
        raise ConfigError(
            "a backbone of another kind",
            value=f"{chosen.__module__}:{chosen.__qualname__}",
            allowed="a subclass of flow_opd.backbones.pipeline.DiffusersBackbone",
            fix="name such a class",
        )
    return chosen
