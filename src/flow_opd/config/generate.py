"""Settings of image generation for a look."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flow_opd.config.base import Name, PositiveInt, Settings
from flow_opd.config.common import BaseModelSettings, ComputeSettings, RunSettings


class GenerateSettings(Settings):
    """Draws images of prompts, with or without an adapter, by the ODE."""

    run: RunSettings
    """Folder of the images, and the seed of the first image of each prompt."""
    base: BaseModelSettings
    """The pipeline."""
    compute: ComputeSettings = ComputeSettings()
    """Device, memory and speed."""
    adapter: Name | None = None
    """Adapter: a path, 'asset:NAME' or a hub id 'owner/name[@revision]'; null draws from the base."""
    prompts: Annotated[tuple[Name, ...], Field(min_length=1)]
    """What to draw."""
    images_per_prompt: PositiveInt = 1
    """Images of each prompt, from seeds that count up."""
    num_steps: PositiveInt = 40
    """Sampling steps."""
    guidance_scale: Annotated[float, Field(ge=1)] = 4.5
    """Classifier-free guidance; 1 switches it off."""
