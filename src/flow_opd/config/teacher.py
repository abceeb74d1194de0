"""Settings of Flow-GRPO: one adapter, trained on one reward, or on those of several tasks (GRPO-Mix)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flow_opd.config.base import (
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    refuse,
)
from flow_opd.config.common import LoraSettings, PromptsSettings, TrainingConfig, TrainingStage, duplicates
from flow_opd.config.merge import ColdStartSettings, lora_problems
from flow_opd.config.rewards import RewardSettings
from flow_opd.config.sampling import SamplingSettings
from flow_opd.config.state_weights import (
    CustomStateWeights,
    StateWeightsSettings,
    TransitionWeightsSettings,
    state_weights_problems,
)
from flow_opd.config.teachers import task_problems


class GRPOConfig(TrainingConfig):
    """How Flow-GRPO trains: groups, advantages, walk, clipped policy gradient."""

    lora: LoraSettings | None = None
    """A fresh adapter; null takes the defaults. A cold start brings its own rank and alpha."""
    task_shares: dict[Name, PositiveFloat] | None = None
    """Share of each task in a round; null gives equal shares."""
    reward_normalization: Literal["sum", "each"] = "sum"
    """How several rewards become one advantage: 'sum' normalizes the weighted sum of the rewards within the
    group; 'each' normalizes every reward within the group and sums the weighted results, so that weights are
    relative importances and not scales."""
    advantage_spread: Literal["group", "round"] = "group"
    """Standard deviation that divides an advantage: of the image's group, or of all images of the round, per
    task under 'sum' and per reward under 'each'."""
    sampling: SamplingSettings = SamplingSettings()
    """How trajectories are sampled."""
    group_size: Annotated[int, Field(ge=2)] = 16
    """Images of each prompt, whose rewards are normalized together."""
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
    state_weights: StateWeightsSettings = TransitionWeightsSettings()
    """'velocity', 'transition', 'sde', 'x0' or 'custom': how much each trained step counts; a word, or a
    section with its name. It scales the advantages, not the KL to the base. 'transition' leaves them as they
    are, and the late steps dominate; so does 'sde' where the dynamics is the SDE."""
    micro_batch_size: PositiveInt = 32
    """Transitions of one forward and backward pass; it changes memory, not results."""
    clip_range: PositiveFloat = 1e-4
    """PPO clip of the ratio, whose log is a mean over latent dimensions."""
    kl_weight: NonNegativeFloat = 0.0
    """beta, weight of the transition KL to the base, whatever `state_weights` says."""
    advantage_clip: PositiveFloat = 5.0
    """Advantages are clipped to this size, in standard deviations, before steps are weighted."""

    def trained_range(self) -> tuple[int, int]:
        """Returns the trained steps as (first, stop), stop excluded."""
        if self.trained_steps == "stochastic":
            return self.sampling.stochastic_range()
        return (int(self.trained_steps[0]), int(self.trained_steps[1]) + 1)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        problems = [*self._step_problems(), *self._weight_problems()]
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
        return problems

    def _weight_problems(self) -> list[Problem]:
        """Checks weights of one's own: one for each step, and above 0 where a step is trained."""
        spec, (first, stop) = self.state_weights, self.trained_range()
        wrong = state_weights_problems(spec, self.sampling.num_steps)
        if wrong or not isinstance(spec, CustomStateWeights):
            return wrong
        allowed = f"above 0 at the trained steps, {first} to {stop - 1}"
        fix = "leave the step out of trained_steps, or raise its weight"
        return [
            Problem(
                ("state_weights", "values", step),
                f"step {step} is trained and has no weight",
                value,
                allowed,
                fix,
            )
            for step, value in enumerate(spec.values)
            if first <= step < stop and value == 0
        ]

    def _step_problems(self) -> list[Problem]:
        problems: list[Problem] = []
        first, stop = self.trained_range()
        if not self.sampling.dynamics.adds_noise:
            problems.append(
                Problem(
                    ("sampling", "dynamics"),
                    "a policy gradient needs noisy steps",
                    self.sampling.dynamics.name,
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
        elif self.sampling.dynamics.takes_noise_away and stop == self.sampling.num_steps:
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


class TeacherSettings(GRPOConfig, TrainingStage):
    """Flow-GRPO: groups of images per prompt, advantages within the group, clipped policy gradient."""

    stage: Literal["teacher"] = "teacher"
    """Stage that the file is for."""
    cold_start: ColdStartSettings | None = None
    """Where the adapter starts, or null for a fresh one. The KL's reference stays the bare base."""
    prompts: Annotated[tuple[PromptsSettings, ...], Field(min_length=1)]
    """Training prompts, of one task or several."""
    rewards: Annotated[tuple[RewardSettings, ...], Field(min_length=1)]
    """What the adapter is trained on; each judges the prompts of its tasks."""

    def _problems(self) -> list[Problem]:
        problems = [
            *super()._problems(),
            *self._task_problems(),
            *lora_problems(self.lora, self.cold_start),
        ]
        if self.cold_start is not None and self.cold_start.merge is not None and not self.cold_start.adapters:
            at, what = ("cold_start", "adapters"), "a merge of nothing: this stage has no teachers"
            problems.append(Problem(at, what, None, "two adapters or more", "name what is merged"))
        return problems + [
            Problem(
                ("rewards", index), "a reward given twice", name, "each reward once", "add up the weights"
            )
            for index, name in duplicates([reward.name for reward in self.rewards])
        ]

    def _task_problems(self) -> list[Problem]:
        """Checks what is known before the prompts are read: the tasks, where every reward names its own."""
        named = [reward.tasks for reward in self.rewards if reward.tasks is not None]
        if len(named) < len(self.rewards):
            return []
        tasks = {task for each in named for task in each}
        prompts, shares = self.groups_per_round, self.task_shares
        return task_problems(tasks, shares, prompts=prompts, key="groups_per_round", of="rewards")
