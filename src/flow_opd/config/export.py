"""Settings of an export of an adapter to another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flow_opd.config.base import Name, PositiveFloat, Settings
from flow_opd.config.common import BaseModelSettings


class ExportSettings(Settings):
    """Writes an adapter for another tool, and checks it by loading it as that tool does."""

    source: Name
    """Run folder with an adapter, or an adapter: a path, 'asset:NAME' or a hub id 'owner/name[@revision]'."""
    format: Literal["peft", "diffusers", "comfyui"] = "diffusers"
    """Whose loader it is written for."""
    out: Path
    """New folder for the files; it is there after the check has passed, or not at all."""
    base: BaseModelSettings | None = None
    """Base to check on; null takes the one that the run or the adapter names."""
    alpha: PositiveFloat | None = None
    """Alpha of a LoRA file that does not say its own."""
    fused: bool = False
    """Writes also the transformer with the adapter's weight change folded in."""
