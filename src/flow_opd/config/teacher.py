"""Settings of a Flow-GRPO teacher: one adapter, trained alone on its own reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flow_opd.config.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    Settings,
    refuse,
)
from flow_opd.config.common import (
    BaseModelSettings,
    CheckpointSettings,
    EMASettings,
    EmbeddingSettings,
    LoraSettings,
    OptimizerSettings,
    PromptsSettings,
    SamplingSettings,
    TrainingComputeSettings,
    TrainingRunSettings,
    duplicates,
)
from flow_opd.config.rewards import RewardSpec


class TeacherSettings(Settings):
    """Flow-GRPO: groups of images per prompt, advantages within the group, clipped policy gradient."""

    run: TrainingRunSettings
    """Run folder, seed and length."""
    base: BaseModelSettings
    """The frozen pipeline."""
    compute: TrainingComputeSettings = TrainingComputeSettings()
    """Device, memory and speed."""
    embeddings: EmbeddingSettings | None = None
    """Encodes all prompts beforehand, for bases with large text encoders; null encodes them as they come."""
    lora: LoraSettings = LoraSettings()
    """The adapter that is trained."""
    prompts: Annotated[tuple[PromptsSettings, ...], Field(min_length=1)]
    """Training prompts."""
    rewards: Annotated[tuple[RewardSpec, ...], Field(min_length=1)]
    """What the teacher is trained on; several are summed by weight."""
    sampling: SamplingSettings = SamplingSettings()
    """How trajectories are drawn."""
    group_size: Annotated[int, Field(ge=2)] = 16
    """Images of each prompt; the advantage compares them with each other."""
    shared_start: bool = False
    """Images of a group start from the same noise, so that they differ by what the policy did alone."""
    groups_per_round: PositiveInt = 8
    """Prompts per round."""
    updates_per_round: PositiveInt = 1
    """Optimizer updates that share the images of one round."""
    trained_steps: Literal["stochastic"] | tuple[NonNegativeInt, NonNegativeInt] = "stochastic"
    """Steps that are trained: all 'stochastic' ones, or a window [first, last] of them, both included."""
    steps_per_round: PositiveInt | None = None
    """So many of the trained steps, drawn at random each round; the others add no noise then. Null: all."""
    balanced_steps: bool = False
    """Weighs advantages so that a velocity counts equally at every noise level; else the late ones decide."""
    micro_batch_size: PositiveInt = 32
    """Transitions of one forward and backward pass; it changes memory, not results."""
    clip_range: PositiveFloat = 1e-4
    """PPO clip of the ratio, whose log is a mean over latent dimensions."""
    kl_weight: NonNegativeFloat = 0.0
    """beta, weight of the transition KL to the base."""
    advantage_clip: PositiveFloat = 5.0
    """Advantages are cut to this size."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """AdamW."""
    ema: EMASettings | None = EMASettings()
    """Average of the adapter's weights, or null for none."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Saving for a resume."""

    def trained_range(self) -> tuple[int, int]:
        """Returns the trained steps as (first, stop), stop excluded."""
        if self.trained_steps == "stochastic":
            return self.sampling.stochastic_range()
        return (int(self.trained_steps[0]), int(self.trained_steps[1]) + 1)

    @model_validator(mode="after")
    def _fields_agree(self) -> TeacherSettings:
        problems = self._step_problems()
        trajectories = self.groups_per_round * self.group_size
        if self.updates_per_round > trajectories:
            problems.append(
                Problem(
                    ("updates_per_round",),
                    "more updates than images in a round",
                    self.updates_per_round,
                    f"1 to {trajectories}",
                    "lower updates_per_round",
                )
            )
        problems += [
            Problem(
                ("rewards", index), "a reward given twice", name, "each reward once", "add up the weights"
            )
            for index, name in duplicates([reward.name for reward in self.rewards])
        ]
        refuse(problems)
        return self

    def _step_problems(self) -> list[Problem]:
        problems: list[Problem] = []
        first, stop = self.trained_range()
        if self.sampling.dynamics == "ode":
            problems.append(
                Problem(
                    ("sampling", "dynamics"),
                    "a policy gradient needs noisy steps",
                    "ode",
                    "'sde' or 'cps'",
                    "choose stochastic dynamics",
                )
            )
        elif not self.sampling.stochastic_range()[0] <= first < stop <= self.sampling.stochastic_range()[1]:
            low, high = self.sampling.stochastic_range()
            problems.append(
                Problem(
                    ("trained_steps",),
                    "trained steps that are not stochastic",
                    [first, stop - 1],
                    f"a window inside [{low}, {high - 1}]",
                    "train only steps that add noise",
                )
            )
        elif self.sampling.dynamics == "cps" and stop == self.sampling.num_steps:
            problems.append(
                Problem(
                    ("trained_steps",),
                    "the last step of CPS adds no noise and has no log-probability",
                    [first, stop - 1],
                    f"steps up to {stop - 2}",
                    "leave the last step out",
                )
            )
        if self.steps_per_round is not None and self.steps_per_round > stop - first:
            problems.append(
                Problem(
                    ("steps_per_round",),
                    "more steps than are trained",
                    self.steps_per_round,
                    f"1 to {stop - first}, or null for all",
                    "lower it",
                )
            )
        return problems
