"""How much each state of a trajectory counts, apart from how much noise its step adds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from flow_opd.config.base import NonNegativeFloat, Problem, Settings, named, refuse

LEAST = 1e-6  # of the largest weight: what is smaller would be lost in float32


class NamedStateWeights(Settings):
    """Weights that need no settings of their own."""

    name: Literal["velocity", "transition", "sde", "x0"]
    """'velocity': an error in velocity counts the same at every state; 'transition': the KL of the step as it
    is sampled, where a deterministic step counts dsigma^2 / 2; 'sde': the KL of Flow-GRPO's SDE with noise in
    every step, however it is sampled; 'x0': an error in the predicted x0 counts the same."""


class CustomStateWeights(Settings):
    """Weights of your own."""

    name: Literal["custom"]
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


StateWeightsSpec = Annotated[
    Annotated[NamedStateWeights | CustomStateWeights, Field(discriminator="name")], BeforeValidator(named)
]


def weighted_states(spec: NamedStateWeights | CustomStateWeights, num_steps: int) -> int:
    """Returns how many states of a walk of `num_steps` steps have a weight above 0."""
    return num_steps if isinstance(spec, NamedStateWeights) else sum(value > 0 for value in spec.values)


def state_weights_problems(spec: NamedStateWeights | CustomStateWeights, num_steps: int) -> list[Problem]:
    """Returns what is wrong with weights for a walk of `num_steps` steps, under the key 'state_weights'."""
    if isinstance(spec, NamedStateWeights) or len(spec.values) == num_steps:
        return []
    what, allowed = "weights for another number of steps", f"{num_steps} values, one for each step"
    return [Problem(("state_weights", "values"), what, len(spec.values), allowed, "give one for each step")]
