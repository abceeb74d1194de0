"""Settings of velocity matching on images: how a base is made."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flow_opd.config.base import NonNegativeInt, PositiveInt, Settings
from flow_opd.config.common import (
    BaseModelSettings,
    CheckpointSettings,
    EMASettings,
    OptimizerSettings,
    TrainingRunSettings,
)


class WorldSettings(Settings):
    """Captioned pictures of the miniature world, noisy on purpose like the web."""

    seed: NonNegativeInt = 0
    """Root of the scenes, the captions and their faults."""
    pictures: PositiveInt = 200_000
    """Distinct pictures to draw; batches pick among them."""


class PretrainSettings(Settings):
    """Velocity matching, |v(x_sigma, sigma, c) - (noise - x0)|^2, on transformer and text encoders."""

    run: TrainingRunSettings
    """Run folder, seed and length; a round is one update."""
    base: BaseModelSettings
    """The pipeline that is trained; its VAE stays as it is."""
    world: WorldSettings = WorldSettings()
    """The pictures."""
    batch_size: PositiveInt = 64
    """Pictures of one update."""
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of captions that are emptied, for guidance without a caption."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=2e-3)
    """AdamW."""
    ema: EMASettings | None = EMASettings(decay=0.999, every=1)
    """Average of the weights, or null for none."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Saving for a resume."""
