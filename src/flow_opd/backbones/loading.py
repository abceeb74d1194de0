"""From a base's name to its backbone: which kind it is, what of it is loaded, and how it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flow_opd.backbones.compute import choose_device, prepare
from flow_opd.backbones.flux import FluxBackbone
from flow_opd.backbones.hub import INDEX, is_offline, pipeline_index, told_as_config_error
from flow_opd.backbones.pipeline import DiffusersBackbone
from flow_opd.backbones.quiet import quiet_loading
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.config.locations import locate_model
from flow_opd.errors import ConfigError, explain

BACKBONES: dict[str, type[DiffusersBackbone]] = {
    "StableDiffusion3Pipeline": SD3Backbone,
    "FluxPipeline": FluxBackbone,
}
"""The pipeline class that a base's model_index.json names -> its backbone."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_backbone(base: BaseModelSettings, compute: ComputeSettings) -> DiffusersBackbone:
    """Returns the frozen base on its device, ready for adapters.

    Args:
        base: which one, and what of it.
        compute: on which device, and how.

    Raises:
        ConfigError: if it cannot be had, is no pipeline that we know, or cannot be used as asked.
    """
    source = locate_model(base.path, key="base.path")
    device = choose_device(compute.device)
    with told_as_config_error(source, base):
        index = pipeline_index(source, base)
        kind = _kind(index, source)
        absent = kind.absent_parts(index, base)
        with quiet_loading():
            pipe = kind.pipeline.from_pretrained(
                source,
                dtype=DTYPES[base.dtype],
                revision=base.revision,
                variant=base.variant,
                local_files_only=is_offline(base),
                use_safetensors=True,
                **absent,
            )
    with quiet_loading():
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    backbone = kind.wrap(pipe, base)
    prepare(backbone, compute)
    return backbone


def _kind(index: Mapping[str, Any], source: str) -> type[DiffusersBackbone]:
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in BACKBONES:
        raise ConfigError(
            explain(
                f"the base {source} is a pipeline of another kind",
                value=name,
                allowed=f"a {INDEX} that names one of " + ", ".join(sorted(BACKBONES)),
                fix="point base.path at such a base",
            )
        )
    return BACKBONES[name]
