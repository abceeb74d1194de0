"""Settings of an evaluation: rows (policies) on domains (prompts), seen through rewards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flow_opd.config.base import Name, NonNegativeInt, PositiveInt, Problem, Settings, StageSettings, refuse
from flow_opd.config.common import (
    BaseModelSettings,
    ComputeSettings,
    EmbeddingSettings,
    PromptsSettings,
    RunSettings,
    duplicates,
)
from flow_opd.config.rewards import RewardSettings


class RowSettings(Settings):
    """A row of the table: the base with one adapter or none."""

    adapter: Name | None = None
    """Adapter: a path, 'asset:NAME' or a hub id 'owner/name[@revision]'; null is the base itself."""
    guidance_scale: Annotated[float, Field(ge=1)] = 4.5
    """Classifier-free guidance of this row; 1 switches it off."""
    domains: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Domains that this row is evaluated on; null takes all."""


Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


class DomainSettings(PromptsSettings):
    """A file of held-out prompts, and from which seeds they are drawn."""

    seeds: Seeds | None = None
    """Image seeds of this domain, such as [0, 1, 2, 3] as GenEval asks; null takes 'seeds'."""


class RolesSettings(Settings):
    """Which row is what: the roles say which differences and retained gains are reported."""

    base: Name
    """Row without an adapter."""
    student: Name | None = None
    """Row of the distilled student; null compares every teacher with the base instead."""
    merge: Name | None = None
    """Row of the merged cold start."""
    teachers: dict[Name, Name] = Field(default_factory=dict)
    """Domain -> row of its teacher."""
    baselines: tuple[Name, ...] = ()
    """Further rows that the student is compared with, such as GRPO-Mix."""

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the differences worth telling: along base, merge, student; to teachers and baselines."""
        if self.student is None:
            others = [*([self.merge] if self.merge is not None else []), *self.baselines]
            return [(name, self.base) for name in (*self.teachers.values(), *others)]
        pairs = [(self.student, self.base)]
        if self.merge is not None:
            pairs += [(self.student, self.merge), (self.merge, self.base)]
        return pairs + [(self.student, other) for other in (*self.teachers.values(), *self.baselines)]


class EvaluateSettings(StageSettings):
    """Images of held-out prompts under every row from the same seeds, scored and compared."""

    stage: Literal["evaluate"] = "evaluate"
    """Stage that the file is for."""
    run: RunSettings
    """Run folder and seed."""
    base: BaseModelSettings
    """The frozen pipeline."""
    compute: ComputeSettings = ComputeSettings()
    """Device, memory and speed."""
    embeddings: EmbeddingSettings | None = None
    """Encodes all prompts beforehand, for bases with large text encoders; null encodes them as they come."""
    rows: Annotated[dict[Name, RowSettings], Field(min_length=1)]
    """Name -> policy, in the order of the table."""
    domains: Annotated[dict[Name, DomainSettings], Field(min_length=1)]
    """Name -> held-out prompts; metrics count on the domains that they are named for."""
    rewards: Annotated[tuple[RewardSettings, ...], Field(min_length=1)]
    """Every image is scored by every reward that applies to its prompt."""
    roles: RolesSettings | None = None
    """What is compared with what; null takes the first row as the base and the last as the student."""
    num_steps: PositiveInt = 40
    """Sampling steps of the ODE."""
    seeds: Seeds = (0,)
    """Image seeds; each prompt is drawn once from each, where its domain names none of its own."""
    batch_size: PositiveInt = 64
    """Images drawn at once; it changes memory, not results."""
    grid_prompts: NonNegativeInt = 4
    """Prompts of each domain whose images are kept for the picture grid."""

    def roles_of_rows(self) -> RolesSettings:
        """Returns which row is what: as given, or else the first as the base and the last as the student."""
        names = list(self.rows)
        return self.roles or RolesSettings(base=names[0], student=names[-1])

    def domains_of(self, row: str) -> tuple[str, ...]:
        """Returns the domains that a row is evaluated on."""
        return self.rows[row].domains or tuple(self.domains)

    def seeds_of(self, domain: str) -> tuple[int, ...]:
        """Returns the image seeds of a domain."""
        return self.domains[domain].seeds or self.seeds

    @model_validator(mode="after")
    def _names_known(self) -> EvaluateSettings:
        problems = [
            Problem(
                ("rows", name, "domains", index),
                f"row {name!r} names an unknown domain",
                domain,
                ", ".join(self.domains),
                "name domains of this file",
            )
            for name, row in self.rows.items()
            for index, domain in enumerate(row.domains or ())
            if domain not in self.domains
        ]
        problems += [
            Problem(
                ("rewards", index), "a reward given twice", name, "each reward once", "remove one of them"
            )
            for index, name in duplicates([reward.name for reward in self.rewards])
        ]
        problems += _seed_problems(self.seeds, ("seeds",))
        for name, domain in self.domains.items():
            problems += _seed_problems(domain.seeds or (), ("domains", name, "seeds"))
        refuse([*problems, *self._reward_problems(), *self._role_problems()])
        return self

    def _reward_problems(self) -> list[Problem]:
        what, allowed = "a setting that does nothing in an evaluation", "the default"
        return [
            Problem(("rewards", index, key), what, value, allowed, "remove it")
            for index, reward in enumerate(self.rewards)
            for key, value in reward.for_training().items()
        ]

    def _role_problems(self) -> list[Problem]:
        if self.roles is None:
            return []
        roles: list[tuple[tuple[str | int, ...], str | None]] = [
            (("base",), self.roles.base),
            (("student",), self.roles.student),
            (("merge",), self.roles.merge),
            *((("teachers", domain), row) for domain, row in self.roles.teachers.items()),
            *((("baselines", index), row) for index, row in enumerate(self.roles.baselines)),
        ]
        problems = [
            Problem(
                ("roles", *at),
                "a role for an unknown row",
                row,
                ", ".join(self.rows),
                "name rows of this file",
            )
            for at, row in roles
            if row is not None and row not in self.rows
        ]
        named = [self.roles.base, self.roles.student, self.roles.merge, *self.roles.teachers.values()]
        for index, row in enumerate(self.roles.baselines):
            if row in (*named, *self.roles.baselines[:index]):
                what, allowed = "a baseline that has a role already", "rows of no other role, each once"
                problems.append(Problem(("roles", "baselines", index), what, row, allowed, "remove it"))
        for domain, row in self.roles.teachers.items():
            at = ("roles", "teachers", domain)
            if domain not in self.domains:
                allowed, fix = ", ".join(self.domains), "name domains of this file"
                problems.append(Problem(at, "a teacher of an unknown domain", domain, allowed, fix))
            elif row in self.rows and domain not in self.domains_of(row):
                allowed = ", ".join(self.domains_of(row))
                fix = f"add {domain!r} to the domains of row {row!r}"
                problems.append(
                    Problem(at, f"row {row!r} is not evaluated on its domain", domain, allowed, fix)
                )
        return problems


def _seed_problems(seeds: tuple[int, ...], at: tuple[str, ...]) -> list[Problem]:
    return [
        Problem((*at, index), "a seed given twice", int(seed), "distinct seeds", "remove one of them")
        for index, seed in duplicates([str(seed) for seed in seeds])
    ]
