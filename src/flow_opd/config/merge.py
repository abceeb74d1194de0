"""Settings of merges: the stage, and a merge where a student starts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from flow_opd.config.base import Name, PositiveFloat, PositiveInt, Problem, Settings, named, refuse
from flow_opd.config.common import BaseModelSettings, LoraSettings, RunSettings, duplicates


class ExactMergeSettings(Settings):
    """Stacked factors: nothing is lost, and the rank is the sum of the ranks."""

    name: Literal["mean", "weighted"]
    """'mean' weights all adapters equally, 'weighted' by their given weights."""


class FactorAverageSettings(Settings):
    """The average of the factors A and B apart, which is no average of the weight changes: for comparison."""

    name: Literal["factor-average"]
    """Which method this is."""


class CutMergeSettings(Settings):
    """What all methods share whose result is cut to a rank."""

    rank: PositiveInt
    """Rank of the result."""
    alpha: PositiveFloat | None = None
    """LoRA alpha of the result; null is twice the rank. It leaves the weight change as it is, but a learning
    rate moves that by the root of alpha / rank: choose the two together."""


class SVDMergeSettings(CutMergeSettings):
    """The mean of the weight changes, cut to a rank; the lost energy is reported."""

    name: Literal["svd"]
    """Which method this is."""


class TIESMergeSettings(CutMergeSettings):
    """TIES: keeps the largest entries and the sign of the majority, then cuts to a rank."""

    name: Literal["ties"]
    """Which method this is."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the entries of a weight change that stays."""


class DAREMergeSettings(CutMergeSettings):
    """DARE: drops random entries and scales up the rest, then cuts to a rank."""

    name: Literal["dare"]
    """Which method this is."""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Probability that an entry is dropped."""


MergeMethodSpec = Annotated[
    Annotated[
        ExactMergeSettings | FactorAverageSettings | SVDMergeSettings | TIESMergeSettings | DAREMergeSettings,
        Field(discriminator="name"),
    ],
    BeforeValidator(named),
]


class MergeInputSettings(Settings):
    """An adapter that goes into the merge."""

    name: Name
    """Name in the log."""
    adapter: Name
    """Adapter: a path, 'asset:NAME' or a hub id 'owner/name[@revision]'."""
    weight: PositiveFloat | None = None
    """Factor of its weight change, used as it is; null where all weigh 1 / number of adapters."""


class MergeSettings(Settings):
    """One adapter from several, without training: acts on the weight changes, never on their factors."""

    run: RunSettings
    """Run folder, and the seed of methods that draw."""
    base: BaseModelSettings
    """The pipeline that the adapters belong to."""
    adapters: Annotated[tuple[MergeInputSettings, ...], Field(min_length=2)]
    """What is merged."""
    method: MergeMethodSpec = ExactMergeSettings(name="mean")
    """'mean', 'weighted', 'svd', 'ties', 'dare' or 'factor-average'; a word, or a section with its name."""

    def weights(self) -> tuple[float, ...] | None:
        """Returns the weights of the adapters, or None if all weigh the same."""
        given = tuple(each.weight for each in self.adapters if each.weight is not None)
        return given or None

    @model_validator(mode="after")
    def _fields_agree(self) -> MergeSettings:
        problems = [
            Problem(
                ("adapters", at, "name"), "two adapters with one name", name, "distinct names", "rename one"
            )
            for at, name in duplicates([each.name for each in self.adapters])
        ]
        given = self.weights() or ()
        method = self.method.name
        if method == "mean" and given:
            fix = "choose the method 'weighted', or remove the weights"
            problems.append(Problem(("method",), "method 'mean' takes no weights", list(given), "none", fix))
        elif len(given) not in ((len(self.adapters),) if method == "weighted" else (0, len(self.adapters))):
            what, allowed = f"method {method!r} lacks weights", "a weight for every adapter"
            problems.append(Problem(("adapters",), what, list(given), allowed, "add the missing weights"))
        refuse(problems)
        return self


class ColdStartSettings(Settings):
    """Where the student starts: a merge of adapters, or an adapter that exists already."""

    merge: MergeMethodSpec | None = None
    """Method that merges the adapters, as in the stage merge."""
    adapters: Annotated[tuple[Name, ...], Field(min_length=2)] | None = None
    """What is merged: paths, 'asset:NAME' or hub ids 'owner/name[@revision]'; null takes the teachers of a
    distillation."""
    adapter: Name | None = None
    """Adapter: a path, 'asset:NAME' or a hub id 'owner/name[@revision]' to start from instead."""

    @model_validator(mode="after")
    def _fields_agree(self) -> ColdStartSettings:
        if (self.merge is None) == (self.adapter is None):
            given = {"merge": self.merge and self.merge.name, "adapter": self.adapter}
            fix = "keep one of the two; for a fresh student write cold_start: null"
            refuse([Problem((), "a cold start needs one source", given, "either merge or adapter", fix)])
        if self.adapters is not None and self.merge is None:
            what, fix = "adapters that nothing merges", "name a method in 'merge', or remove them"
            refuse([Problem(("adapters",), what, list(self.adapters), "null without 'merge'", fix)])
        if self.merge is not None and self.merge.name == "weighted":
            what, allowed = "adapters of a cold start have no weights", "mean, svd, ties, dare"
            fix = "merge with weights beforehand and name the result under adapter"
            refuse([Problem(("merge",), what, "weighted", allowed, fix)])
        return self

    def named(self) -> tuple[Name, ...]:
        """Returns the adapters that are named here, whatever is made of them."""
        return self.adapters or (() if self.adapter is None else (self.adapter,))


def lora_problems(lora: LoraSettings | None, start: ColdStartSettings | None) -> list[Problem]:
    """Returns what is wrong with LoRA settings for a fresh adapter where a cold start brings an adapter."""
    if lora is None or start is None:
        return []
    fix = "remove 'lora'; say the rank in cold_start.merge"
    allowed = "null beside a cold start, whose adapter has a rank and an alpha of its own"
    return [Problem(("lora",), "settings that would do nothing", "lora", allowed, fix)]
