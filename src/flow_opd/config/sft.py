"""Settings of the SFT cold start: the teachers draw, the student learns their images by flow matching."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from flow_opd.config.base import PositiveFloat, PositiveInt, Settings, named, refuse
from flow_opd.config.common import (
    LoraSettings,
    PromptsSettings,
    TrainingConfig,
    TrainingStage,
)
from flow_opd.config.teachers import RoutedTeacherSettings, teacher_problems, teachers_by_task


class LogitNormalSigmas(Settings):
    """Noise levels around the middle most often: sigmoid of standard normals."""

    name: Literal["logit-normal"]
    """Which distribution this is."""


class UniformShiftedSigmas(Settings):
    """Noise levels as a sampler visits them: uniform, then moved towards 1 by the shift."""

    name: Literal["uniform-shifted"] = "uniform-shifted"
    """Which distribution this is."""
    shift: PositiveFloat = 3.0
    """The shift of the base's own scheduler: 3 for Stable Diffusion 3 and 3.5."""


SigmasSpec = Annotated[
    Annotated[LogitNormalSigmas | UniformShiftedSigmas, Field(discriminator="name")], BeforeValidator(named)
]


class SFTConfig(TrainingConfig):
    """How a student learns its teachers' images: what they draw, how often, at which noise levels."""

    lora: LoraSettings = LoraSettings()
    """The student's adapter."""
    images_per_prompt: PositiveInt = 1
    """Images of each prompt, from different noise."""
    num_steps: PositiveInt = 40
    """Steps of the ODE by which the teachers draw."""
    sample_batch_size: PositiveInt = 64
    """Images drawn at once; it changes memory, not results."""
    batch_size: PositiveInt = 32
    """Images of one update, equally many of each task."""
    micro_batch_size: PositiveInt = 32
    """Images of one forward and backward pass; it changes memory, not results."""
    sigmas: SigmasSpec = UniformShiftedSigmas()
    """'uniform-shifted' or 'logit-normal': how noise levels are drawn; a word, or a section with its name.
    How often a level is drawn is its weight: here this is the choice that `state_weights` is elsewhere."""
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of images learnt under the empty prompt, for a student that is guided later; else 0."""


class SFTSettings(SFTConfig, TrainingStage):
    """A student that starts from its teachers' images: they are drawn once, then matched."""

    stage: Literal["sft"] = "sft"
    """Stage that the file is for."""
    teachers: Annotated[tuple[RoutedTeacherSettings, ...], Field(min_length=1)]
    """The experts; each draws the prompts of its tasks."""
    prompts: Annotated[tuple[PromptsSettings, ...], Field(min_length=1)]
    """What the teachers draw."""

    def teacher_of_task(self) -> dict[str, str]:
        """Returns task -> name of its teacher."""
        return teachers_by_task(self.teachers)

    @model_validator(mode="after")
    def _teachers_agree(self) -> SFTSettings:
        refuse(teacher_problems(self.teachers))
        return self
