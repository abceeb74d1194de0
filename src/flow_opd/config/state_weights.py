"""How much each state of a trajectory counts, apart from how much noise its step adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from flow_opd.config.base import NonNegativeFloat, Problem, refuse
from flow_opd.config.kinds import Kind, load
from flow_opd.config.parts import Part

if TYPE_CHECKING:
    from flow_opd.flow.weights import StateWeights

LEAST = 1e-6  # of the largest weight: what is smaller would be lost in float32


class StateWeightsSettings(Part):
    """Weight of each state (noise level) in the loss. A function of one's own takes (schedule, dynamics) and
    returns a weight for each step, [T]."""

    kind: ClassVar[Kind] = Kind(
        "state weights",
        "flow_opd.state_weights",
        {
            "velocity": "flow_opd.config.state_weights:VelocityWeightsSettings",
            "transition": "flow_opd.config.state_weights:TransitionWeightsSettings",
            "sde": "flow_opd.config.state_weights:SDEWeightsSettings",
            "x0": "flow_opd.config.state_weights:X0WeightsSettings",
            "custom": "flow_opd.config.state_weights:CustomStateWeights",
        },
        method="__call__",
        takes=2,
    )

    def build(self, noise_level: float) -> StateWeights:
        """Returns the weights; `noise_level` is that of the walk."""
        return self.made()

    def weighted(self, num_steps: int) -> int:
        """Returns how many states of a walk of `num_steps` steps have a weight above 0."""
        return num_steps


class VelocityWeightsSettings(StateWeightsSettings):
    """An error in velocity counts the same at every state."""

    name: Literal["velocity"] = "velocity"
    """Which weights these are."""

    def build(self, noise_level: float) -> StateWeights:
        """Returns the weights."""
        return load("flow_opd.flow.weights:velocity_weights")


class TransitionWeightsSettings(StateWeightsSettings):
    """The KL of the step as it is sampled, where a deterministic step counts dsigma^2 / 2."""

    name: Literal["transition"] = "transition"
    """Which weights these are."""

    def build(self, noise_level: float) -> StateWeights:
        """Returns the weights."""
        return load("flow_opd.flow.weights:transition_weights")


class SDEWeightsSettings(StateWeightsSettings):
    """The KL of Flow-GRPO's SDE with noise in every step, however it is sampled."""

    name: Literal["sde"] = "sde"
    """Which weights these are."""

    def build(self, noise_level: float) -> StateWeights:
        """Returns the weights for noise of this level in every step."""
        return load("flow_opd.flow.weights:noisy_weights")(noise_level)


class X0WeightsSettings(StateWeightsSettings):
    """An error in the predicted x0 counts the same."""

    name: Literal["x0"] = "x0"
    """Which weights these are."""

    def build(self, noise_level: float) -> StateWeights:
        """Returns the weights."""
        return load("flow_opd.flow.weights:x0_weights")


class CustomStateWeights(StateWeightsSettings):
    """Weights of your own."""

    name: Literal["custom"] = "custom"
    """Which weights these are."""
    values: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
    """One for each step, relative to each other. With the direct KL neither teacher nor anchor is evaluated
    at a state of weight 0; Flow-GRPO takes no 0 at a step that it trains."""

    @model_validator(mode="after")
    def _something_counts(self) -> CustomStateWeights:
        if not any(self.values):
            fix = "raise one of them"
            refuse([Problem(("values",), "no state counts", list(self.values), "one above 0", fix)])
        least = max(self.values) * LEAST
        what, allowed = "a weight that vanishes beside the largest", f"0, or {LEAST:g} of it and more"
        refuse(
            [
                Problem(("values", index), what, value, allowed, "set it to 0, or raise it")
                for index, value in enumerate(self.values)
                if 0 < value < least
            ]
        )
        return self

    def build(self, noise_level: float) -> StateWeights:
        """Returns the weights."""
        return load("flow_opd.flow.weights:given_weights")(self.values)

    def weighted(self, num_steps: int) -> int:
        """Returns how many states have a weight above 0."""
        return sum(value > 0 for value in self.values)


def state_weights_problems(spec: StateWeightsSettings, num_steps: int) -> list[Problem]:
    """Returns what is wrong with weights for a walk of `num_steps` steps, under the key 'state_weights'."""
    if not isinstance(spec, CustomStateWeights) or len(spec.values) == num_steps:
        return []
    what, allowed = "weights for another number of steps", f"{num_steps} values, one for each step"
    return [Problem(("state_weights", "values"), what, len(spec.values), allowed, "give one for each step")]
