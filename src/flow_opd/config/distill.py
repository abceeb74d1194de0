"""Settings of multi-teacher on-policy distillation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flow_opd.config.base import Name, PositiveFloat, PositiveInt, Problem, Settings, refuse
from flow_opd.config.common import LoraSettings, PromptsSettings, TrainingConfig, TrainingStage
from flow_opd.config.merge import ColdStartSettings, lora_problems
from flow_opd.config.objectives import DirectKLSettings, ObjectiveSettings
from flow_opd.config.sampling import SamplingSettings
from flow_opd.config.state_weights import (
    StateWeightsSettings,
    VelocityWeightsSettings,
    state_weights_problems,
)
from flow_opd.config.teachers import (
    RoutedTeacherSettings,
    RouterSettings,
    TaskRouterSettings,
    task_problems,
    teacher_problems,
    teachers_by_task,
)

ANCHOR_SHARE = 0.125  # harmless: docs/LOG.md, entries 9 and 10


class AnchorSettings(Settings):
    """Manifold anchor regularization (MAR): keeps the student near a quality expert on every prompt."""

    teacher: Name | None = None
    """Name of one of the teachers, whose adapter is the anchor's too."""
    adapter: Name | None = None
    """Adapter of an anchor that is no teacher."""
    weight: PositiveFloat = 0.02
    """lambda, weight of the loss to the anchor relative to the loss to the teachers."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the states, drawn at random, at which the anchor is evaluated; they are weighted by 1 / share,
    so that its loss is the same in expectation at a fraction of the cost. 1 evaluates it at every state, as
    published; null takes an eighth, or all where the objective is a policy gradient."""
    guidance_scale: Annotated[float, Field(ge=1)] = 4.5
    """Classifier-free guidance of the anchor's velocity; 1 switches it off."""

    @model_validator(mode="after")
    def _one_source(self) -> AnchorSettings:
        if (self.teacher is None) == (self.adapter is None):
            given = {"teacher": self.teacher, "adapter": self.adapter}
            fix = "keep one of the two; to train without an anchor write anchor: null"
            refuse([Problem((), "an anchor needs one source", given, "either teacher or adapter", fix)])
        return self


class DistillConfig(TrainingConfig):
    """How teachers are distilled: objective, walk, rounds, optimizer."""

    lora: LoraSettings | None = None
    """A fresh student's adapter; null takes the defaults. A cold start brings its own rank and alpha."""
    objective: ObjectiveSettings = DirectKLSettings()
    """What is minimised; a word, or a section with its name."""
    router: RouterSettings = TaskRouterSettings()
    """'task' gives each prompt to the teacher of its task; a word, or a section with its name."""
    state_weights: StateWeightsSettings = VelocityWeightsSettings()
    """'velocity', 'transition' (as published), 'sde', 'x0' or 'custom': weight of each state (noise level) in
    the loss; a word, or a section with its name. The policy gradients apply it to the anchor's loss only."""
    task_shares: dict[Name, PositiveFloat] | None = None
    """Share of each task in a round; null gives equal shares."""
    prompts_per_round: PositiveInt = 32
    """Trajectories per round, one for each prompt."""
    micro_batch_size: PositiveInt = 32
    """Trajectories of one forward and backward pass; it changes memory, not results."""
    sampling: SamplingSettings = SamplingSettings()
    """How the student's trajectories are sampled."""

    def updates_per_round(self) -> int:
        """Returns the optimizer updates of a round."""
        return self.objective.updates()

    def default_anchor_share(self) -> float:
        """Returns the share of the states at which an anchor is evaluated that sets none."""
        return 1.0 if self.objective.by_policy_gradient else ANCHOR_SHARE

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        problems = state_weights_problems(self.state_weights, self.sampling.num_steps)
        if self.objective.by_policy_gradient and not self.sampling.dynamics.adds_noise:
            problems.append(
                Problem(
                    ("sampling", "dynamics"),
                    f"objective {self.objective.name!r} needs noisy steps",
                    self.sampling.dynamics.name,
                    "'sde' or 'cps'",
                    "choose stochastic dynamics, or the objective 'direct-kl'",
                )
            )
        if self.updates_per_round() > self.prompts_per_round:
            problems.append(
                Problem(
                    ("objective", "updates_per_round"),
                    "more updates than trajectories in a round",
                    self.updates_per_round(),
                    f"1 to {self.prompts_per_round}",
                    "lower it, or raise prompts_per_round",
                )
            )
        return problems


class DistillSettings(DistillConfig, TrainingStage):
    """Multi-teacher on-policy distillation: the student walks, the routed teachers correct every step."""

    stage: Literal["distill"] = "distill"
    """Stage that the file is for."""
    teachers: Annotated[tuple[RoutedTeacherSettings, ...], Field(min_length=1)]
    """The experts."""
    anchor: AnchorSettings | None = None
    """The quality expert on all prompts, or null for none."""
    cold_start: ColdStartSettings | None = None
    """Where the student starts, or null for a fresh adapter."""
    prompts: Annotated[tuple[PromptsSettings, ...], Field(min_length=1)]
    """Training prompts of all tasks."""

    def teacher_of_task(self) -> dict[str, str]:
        """Returns task -> name of its teacher."""
        return teachers_by_task(self.teachers)

    def anchor_share(self, anchor: AnchorSettings) -> float:
        """Returns the share of the states at which the anchor is evaluated."""
        return self.default_anchor_share() if anchor.share is None else anchor.share

    def _problems(self) -> list[Problem]:
        return [
            *teacher_problems(self.teachers),
            *self._anchor_problems(),
            *self._idle_problems(),
            *lora_problems(self.lora, self.cold_start),
            *task_problems(
                set(self.teacher_of_task()),
                self.task_shares,
                prompts=self.prompts_per_round,
                key="prompts_per_round",
                of="teachers",
            ),
            *super()._problems(),
        ]

    def _idle_problems(self) -> list[Problem]:
        """Returns settings that a policy gradient would not read."""
        if not self.objective.by_policy_gradient:
            return []
        problems = []
        if self.anchor is None and self.state_weights != VelocityWeightsSettings():
            problems.append(
                Problem(
                    ("state_weights",),
                    f"weights that do nothing: {self.objective.name!r} reads them only with an anchor",
                    self.state_weights.name,
                    "the default, velocity",
                    "leave it out, or choose the objective 'direct-kl'",
                )
            )
        if self.anchor is not None and self.anchor.share is not None and self.anchor.share < 1:
            problems.append(
                Problem(
                    ("anchor", "share"),
                    f"objective {self.objective.name!r} evaluates the anchor at every state",
                    self.anchor.share,
                    "1",
                    "leave it out (null), or choose the objective 'direct-kl'",
                )
            )
        return problems

    def _anchor_problems(self) -> list[Problem]:
        names = [teacher.name for teacher in self.teachers]
        if self.anchor is None or self.anchor.teacher is None or self.anchor.teacher in names:
            return []
        return [
            Problem(
                ("anchor", "teacher"),
                "the anchor names an unknown teacher",
                self.anchor.teacher,
                ", ".join(names),
                "name one of the teachers, or give an adapter",
            )
        ]
