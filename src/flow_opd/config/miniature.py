"""Settings of the miniature laboratory: how its parts are built, and its prompts."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from flow_opd.config.base import Name, NonNegativeInt, PositiveFloat, PositiveInt, Settings, StageSettings
from flow_opd.config.common import CheckpointSettings, RunSettings

Part = Literal["vae", "base", "refine", "deqa", "pickscore"]


class PartSettings(Settings):
    """How long one network of the miniature is trained."""

    steps: PositiveInt
    """Optimizer updates."""
    batch_size: PositiveInt = 64
    """Pictures of one update."""
    learning_rate: PositiveFloat = 2e-3
    """Learning rate after the warm-up; it decays linearly to 0."""


class MiniatureSettings(StageSettings):
    """The world, the VAE, the base and the reward models, all from seeds; finished parts are kept."""

    stage: Literal["miniature"] = "miniature"
    """Stage that the file is for."""
    run: RunSettings
    """Run folder and seed."""
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = get_args(Part)
    """What is built, in this order; a part that another one needs is built with it."""
    pictures: PositiveInt = 120_000
    """Captioned pictures that VAE and base learn from."""
    vae: PartSettings = PartSettings(steps=1500, batch_size=48)
    """The image autoencoder."""
    base: PartSettings = PartSettings(steps=8000)
    """The velocity network, with its text encoders."""
    refine: PartSettings = PartSettings(steps=14000, learning_rate=1.5e-3)
    """The same trained on, more often at middle noise levels; the result is the shipped base."""
    deqa: PartSettings = PartSettings(steps=4000)
    """The quality model."""
    pickscore: PartSettings = PartSettings(steps=8000, batch_size=128, learning_rate=1e-3)
    """The preference model."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Saving for a resume."""


class MiniaturePromptsSettings(StageSettings):
    """Training and held-out prompts of the four domains; only the smallest tags share texts."""

    stage: Literal["miniature_prompts"] = "miniature_prompts"
    """Stage that the file is for."""
    run: RunSettings
    """Folder of the prompt files, and the seed."""
    domains: Annotated[tuple[Name, ...], Field(min_length=1)] = (
        "composition",
        "text",
        "preference",
        "quality",
    )
    """Domains to write."""
    train: PositiveInt = 1000
    """Training prompts of each domain."""
    held_out: NonNegativeInt = 500
    """Held-out prompts of each domain."""
