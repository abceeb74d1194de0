"""Settings of merges: the stage, and a merge where a student starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from flow_opd.config.base import Name, PositiveFloat, PositiveInt, Problem, Settings, StageSettings, refuse
from flow_opd.config.common import BaseModelSettings, LoraSettings, RunSettings, duplicates
from flow_opd.config.kinds import Kind, load
from flow_opd.config.parts import Part, of_signature

if TYPE_CHECKING:
    from flow_opd.adapters.merge_methods import Combine, MergeMethod

METHODS = "flow_opd.adapters.merge_methods"  # which take torch along, and are loaded where they are needed
METHOD = f"{METHODS}:MergeMethod"


class MergeMethodSettings(Part):
    """A way to merge. A function of one's own is a `flow_opd.adapters.merge_methods.Combine`: it takes the
    deltas of a module, their weights and a generator, and returns the merged delta, in factors or dense."""

    kind: ClassVar[Kind] = Kind(
        "merge method",
        "flow_opd.merges",
        {
            "mean": "flow_opd.config.merge:ExactMergeSettings",
            "weighted": "flow_opd.config.merge:ExactMergeSettings",
            "svd": "flow_opd.config.merge:SVDMergeSettings",
            "ties": "flow_opd.config.merge:TIESMergeSettings",
            "dare": "flow_opd.config.merge:DAREMergeSettings",
            "factor-average": "flow_opd.config.merge:FactorAverageSettings",
        },
        method="__call__",
        takes=3,
        unlisted=("factor-average",),
    )

    @classmethod
    def of_code(cls, name: str, code: Callable[..., Any]) -> type[Self]:
        """Returns settings for a function of one's own: its parameters, a rank and an alpha."""
        model: Any = of_signature(FunctionMergeSettings, name, code)
        return model

    def build(self) -> MergeMethod:
        """Returns the method."""
        raise NotImplementedError(type(self).__name__)

    def rank_of(self, ranks: Sequence[int]) -> int:
        """Returns the rank of a merge of adapters of these ranks, or the most that it can be."""
        return sum(ranks)

    def alpha_of(self, rank: int) -> float:
        """Returns the LoRA alpha of a merge of this rank."""
        return 2.0 * rank


class ExactMergeSettings(MergeMethodSettings):
    """Stacked factors: nothing is lost, and the rank is the sum of the ranks."""

    name: Literal["mean", "weighted"]
    """'mean' weights all adapters equally, 'weighted' by their given weights."""

    def build(self) -> MergeMethod:
        """Returns the method."""
        weights = "equal" if self.name == "mean" else "given"
        method: MergeMethod = load(METHOD)(self.name, load(f"{METHODS}:weighted_sum"), weights)
        return method


class FactorAverageSettings(MergeMethodSettings):
    """The average of the factors A and B apart, which is no average of the weight changes: for comparison."""

    name: Literal["factor-average"] = "factor-average"
    """Which method this is."""

    def build(self) -> MergeMethod:
        """Returns the method."""
        method: MergeMethod = load(METHOD)(self.name, load(f"{METHODS}:factor_average"))
        return method

    def rank_of(self, ranks: Sequence[int]) -> int:
        """Returns the rank of a merge of adapters of these ranks, which have to be equal."""
        return max(ranks)


class CutMergeSettings(MergeMethodSettings):
    """What all methods share whose result is cut to a rank."""

    rank: PositiveInt
    """Rank of the result."""
    alpha: PositiveFloat | None = None
    """LoRA alpha of the result; null is twice the rank. It leaves the weight change as it is, but a learning
    rate moves that by the root of alpha / rank: choose the two together."""

    def cut(self, combine: Combine) -> MergeMethod:
        """Returns the method that cuts what `combine` makes."""
        method: MergeMethod = load(METHOD)(self.name, combine, rank=self.rank, alpha=self.alpha)
        return method

    def rank_of(self, ranks: Sequence[int]) -> int:
        """Returns the rank of a merge, whatever those of the adapters are."""
        return self.rank

    def alpha_of(self, rank: int) -> float:
        """Returns the LoRA alpha of a merge of this rank."""
        return self.alpha or 2.0 * rank


class SVDMergeSettings(CutMergeSettings):
    """The mean of the weight changes, cut to a rank; the lost energy is reported."""

    name: Literal["svd"] = "svd"
    """Which method this is."""

    def build(self) -> MergeMethod:
        """Returns the method."""
        return self.cut(load(f"{METHODS}:weighted_sum"))


class TIESMergeSettings(CutMergeSettings):
    """TIES: keeps the largest entries and the sign of the majority, then cuts to a rank."""

    name: Literal["ties"] = "ties"
    """Which method this is."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the entries of a weight change that stays."""

    def build(self) -> MergeMethod:
        """Returns the method."""
        return self.cut(partial(load(f"{METHODS}:ties"), density=self.density))


class DAREMergeSettings(CutMergeSettings):
    """DARE: drops random entries and scales up the rest, then cuts to a rank."""

    name: Literal["dare"] = "dare"
    """Which method this is."""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Probability that an entry is dropped."""

    def build(self) -> MergeMethod:
        """Returns the method."""
        return self.cut(partial(load(f"{METHODS}:dare"), drop=self.drop))


class FunctionMergeSettings(MergeMethodSettings):
    """A function of one's own."""

    rank: PositiveInt | None = None
    """Rank to which the result is cut; null leaves a result in factors as it is."""
    alpha: PositiveFloat | None = None
    """LoRA alpha of the result; null is twice the rank."""

    def build(self) -> MergeMethod:
        """Returns the method."""
        method: MergeMethod = load(METHOD)(self.name, self.made(), rank=self.rank, alpha=self.alpha)
        return method

    def rank_of(self, ranks: Sequence[int]) -> int:
        """Returns the rank of a merge of adapters of these ranks, or the most that it can be."""
        return self.rank or sum(ranks)

    def alpha_of(self, rank: int) -> float:
        """Returns the LoRA alpha of a merge of this rank."""
        return self.alpha or 2.0 * rank


class MergeInputSettings(Settings):
    """An adapter that goes into the merge."""

    name: Name
    """Name in the log."""
    adapter: Name
    """Adapter: a path, 'asset:NAME' or a hub id 'owner/name[@revision]'."""
    weight: PositiveFloat | None = None
    """Factor of its weight change, used as it is; null where all weigh 1 / number of adapters."""


class MergeSettings(StageSettings):
    """One adapter from several, without training: acts on the weight changes, never on their factors."""

    stage: Literal["merge"] = "merge"
    """Stage that the file is for."""
    run: RunSettings
    """Run folder, and the seed of methods that draw."""
    base: BaseModelSettings
    """The pipeline that the adapters belong to."""
    adapters: Annotated[tuple[MergeInputSettings, ...], Field(min_length=2)]
    """What is merged."""
    method: MergeMethodSettings = ExactMergeSettings(name="mean")
    """How the adapters are merged; a word, or a section with its name."""

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

    merge: MergeMethodSettings | None = None
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


def lora_problems(lora: LoraSettings | None, start: ColdStartSettings | None) -> list[Problem]:
    """Returns what is wrong with LoRA settings for a fresh adapter where a cold start brings an adapter."""
    if lora is None or start is None:
        return []
    fix = "remove 'lora'; say the rank in cold_start.merge"
    allowed = "null beside a cold start, whose adapter has a rank and an alpha of its own"
    return [Problem(("lora",), "settings that would do nothing", "lora", allowed, fix)]
