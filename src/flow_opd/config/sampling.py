"""How trajectories are drawn: the reverse step, its noise, and which steps have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from flow_opd.config.base import NonNegativeFloat, NonNegativeInt, PositiveInt, Problem, Settings, refuse
from flow_opd.config.kinds import Kind, load
from flow_opd.config.parts import Part

if TYPE_CHECKING:
    from flow_opd.protocols import Dynamics

StepWindow = Literal["all-but-last", "all"] | tuple[NonNegativeInt, NonNegativeInt]


class DynamicsSettings(Part):
    """One reverse step. A function of one's own has the parameters of `flow_opd.protocols.Dynamics`."""

    kind: ClassVar[Kind] = Kind(
        "dynamics",
        "flow_opd.dynamics",
        {
            "sde": "flow_opd.config.sampling:SDESettings",
            "ode": "flow_opd.config.sampling:ODESettings",
            "cps": "flow_opd.config.sampling:CPSSettings",
        },
        method="__call__",
        takes=5,
    )
    adds_noise: ClassVar[bool] = True
    takes_noise_away: ClassVar[bool] = False
    """Whether a step takes its noise from what is there: at most all of it, and none on the way to 0."""

    def build(self) -> Dynamics:
        """Returns the step."""
        return self.made()


class SDESettings(DynamicsSettings):
    """The SDE of Flow-GRPO."""

    name: Literal["sde"] = "sde"
    """Which one this is."""

    def build(self) -> Dynamics:
        """Returns the step."""
        return load("flow_opd.flow.dynamics:sde_step")


class ODESettings(DynamicsSettings):
    """The deterministic ODE, by Euler's method."""

    name: Literal["ode"] = "ode"
    """Which one this is."""
    adds_noise: ClassVar[bool] = False

    def build(self) -> Dynamics:
        """Returns the step."""
        return load("flow_opd.flow.dynamics:ode_step")


class CPSSettings(DynamicsSettings):
    """Coefficient-preserving steps."""

    name: Literal["cps"] = "cps"
    """Which one this is."""
    takes_noise_away: ClassVar[bool] = True

    def build(self) -> Dynamics:
        """Returns the step."""
        return load("flow_opd.flow.dynamics:cps_step")


class SamplingSettings(Settings):
    """How trajectories are sampled in training."""

    num_steps: PositiveInt = 10
    """Sampling steps from noise to image."""
    dynamics: DynamicsSettings = SDESettings()
    """Reverse step: the Flow-GRPO SDE ('sde'), the deterministic ODE ('ode'), or the coefficient-preserving
    CPS ('cps')."""
    noise_level: NonNegativeFloat = 0.7
    """a, the strength of the noise that a stochastic step adds."""
    stochastic_steps: StepWindow = "all-but-last"
    """Steps that add noise: 'all-but-last', 'all', or [first, last], counted from 0, both included."""
    guidance_scale: Annotated[float, Field(ge=1)] = 4.5
    """Classifier-free guidance of the policy that is trained; 1 switches it off."""

    @model_validator(mode="after")
    def _steps_fit(self) -> SamplingSettings:
        problems = window_problems(self.stochastic_steps, self.num_steps, ("stochastic_steps",))
        if self.dynamics.adds_noise and self.noise_level == 0:
            problems.append(
                Problem(
                    ("noise_level",),
                    f"dynamics {self.dynamics.name!r} without noise",
                    self.noise_level,
                    "a noise level above 0",
                    "raise the noise level, or set dynamics to 'ode'",
                )
            )
        if self.dynamics.takes_noise_away and self.noise_level > 1:
            problems.append(
                Problem(
                    ("noise_level",),
                    "CPS takes its noise from the noise that is there, so it cannot add more than all of it",
                    self.noise_level,
                    "0 < noise_level <= 1",
                    "lower the noise level, or use dynamics 'sde'",
                )
            )
        only = (self.num_steps - 1, self.num_steps)
        if self.dynamics.takes_noise_away and self.stochastic_range() == only:
            problems.append(
                Problem(
                    ("stochastic_steps",),
                    "the last step of CPS adds no noise",
                    self.stochastic_steps,
                    "a window with an earlier step in it",
                    "move the window",
                )
            )
        refuse(problems)
        return self

    def stochastic_range(self) -> tuple[int, int]:
        """Returns the stochastic steps as (first, stop), stop excluded; (0, 0) for the ODE."""
        if not self.dynamics.adds_noise:
            return (0, 0)
        return window_range(self.stochastic_steps, self.num_steps)


def window_range(window: StepWindow, num_steps: int) -> tuple[int, int]:
    """Returns a window of steps as (first, stop), stop excluded."""
    if window == "all-but-last":
        return (0, num_steps - 1)
    if window == "all":
        return (0, num_steps)
    assert not isinstance(window, str)
    return (window[0], window[1] + 1)


def window_problems(window: StepWindow, num_steps: int, at: tuple[str, ...]) -> list[Problem]:
    """Returns what is wrong with a window of steps: empty, or outside the trajectory."""
    first, stop = window_range(window, num_steps)
    if first < stop <= num_steps:
        return []
    value = list(window) if isinstance(window, tuple) else window
    allowed = f"[first, last] with 0 <= first <= last <= {num_steps - 1}, for {num_steps} steps"
    return [Problem(at, "a window outside the steps", value, allowed, "move the window or raise num_steps")]
