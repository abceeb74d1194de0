"""What is minimised in a distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from flow_opd.config.base import PositiveFloat, PositiveInt
from flow_opd.config.kinds import Kind, load
from flow_opd.config.parts import Part

if TYPE_CHECKING:
    from flow_opd.method.objectives import OPDPolicies, WeightedTerms
    from flow_opd.method.walk import Walks
    from flow_opd.protocols import BatchSource


class ObjectiveSettings(Part):
    """What is minimised in a distillation. A function of one's own is the distance of velocities that
    'direct-kl' weighs by the state: it takes (student's, target's, both [M, C, H, W], batch) and returns a
    number for each row, [M]. A class of one's own has that as its `__call__`."""

    kind: ClassVar[Kind] = Kind(
        "objective",
        "flow_opd.objectives",
        {
            "direct-kl": "flow_opd.config.objectives:DirectKLSettings",
            "sampled-log-ratio": "flow_opd.config.objectives:SampledLogRatioSettings",
            "detached-state-kl": "flow_opd.config.objectives:DetachedStateKLSettings",
        },
        method="__call__",
        takes=3,
        unlisted=("detached-state-kl",),
    )
    by_policy_gradient: ClassVar[bool] = False
    """Whether steps are sampled first and weighed by the teachers: they need noise, and no velocity is
    matched but the anchor's, which is asked at every state."""

    def updates(self) -> int:
        """Returns the optimizer updates of a round; one where the batch is the walk itself."""
        return 1

    def build(self, policies: OPDPolicies, walks: Walks) -> tuple[BatchSource, WeightedTerms]:
        """Returns where batches come from and what is minimised."""
        return load("flow_opd.method.opd:direct_opd")(policies, walks, self.made())


class DirectKLSettings(ObjectiveSettings):
    """Weighted squared velocity difference to the teachers, differentiated during the walk; with transition
    weights it is the KL."""

    name: Literal["direct-kl"] = "direct-kl"
    """Which objective this is."""

    def build(self, policies: OPDPolicies, walks: Walks) -> tuple[BatchSource, WeightedTerms]:
        """Returns where batches come from and what is minimised."""
        return load("flow_opd.method.opd:direct_opd")(policies, walks)


class PolicyGradientSettings(ObjectiveSettings):
    """A clipped policy gradient, whose advantages come from the teachers."""

    by_policy_gradient: ClassVar[bool] = True
    advantage: ClassVar[str]  # where the advantage of a step is worked out
    clip_range: PositiveFloat = 1e-4
    """PPO clip of the ratio, whose log is a mean over latent dimensions."""
    advantage_clip: PositiveFloat = 5.0
    """Advantages are clipped to so many standard deviations of the sampled log-ratio, sqrt(2 KL) per state:
    1 keeps 68 % of the gradient, 3 keeps 99.7 %, at any resolution."""
    updates_per_round: PositiveInt = 1
    """Optimizer updates that share the trajectories of one round."""

    def updates(self) -> int:
        """Returns the optimizer updates of a round."""
        return self.updates_per_round

    def build(self, policies: OPDPolicies, walks: Walks) -> tuple[BatchSource, WeightedTerms]:
        """Returns where batches come from and what is minimised."""
        return load("flow_opd.method.opd:policy_gradient_opd")(
            policies,
            walks,
            load(self.advantage),
            updates_per_round=self.updates_per_round,
            clip_range=self.clip_range,
            advantage_clip=self.advantage_clip,
        )


class SampledLogRatioSettings(PolicyGradientSettings):
    """Policy gradient whose advantage is log teacher - log student at the sampled step."""

    name: Literal["sampled-log-ratio"] = "sampled-log-ratio"
    """Which objective this is."""
    advantage: ClassVar[str] = "flow_opd.method.corrections:sampled_log_ratio"


class DetachedStateKLSettings(PolicyGradientSettings):
    """Negative control: the detached KL as an advantage, whose expected gradient is zero."""

    name: Literal["detached-state-kl"] = "detached-state-kl"
    """Which objective this is."""
    advantage: ClassVar[str] = "flow_opd.method.corrections:detached_state_kl"
