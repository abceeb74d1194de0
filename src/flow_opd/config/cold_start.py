"""Where a student starts when it is not a fresh adapter."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from flow_opd.config.base import Name, Problem, Settings, refuse
from flow_opd.config.common import LoraSettings
from flow_opd.config.merge import MergeMethodSpec


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
    """Returns what is wrong with a form for a fresh adapter beside a start that is none."""
    if lora is None or start is None:
        return []
    fix = "remove 'lora'; say the rank in cold_start.merge"
    allowed = "null beside a cold start, whose adapter has a rank and an alpha of its own"
    return [Problem(("lora",), "settings that would do nothing", "lora", allowed, fix)]
