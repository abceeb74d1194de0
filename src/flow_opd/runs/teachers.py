"""The experts of a training: who they are, and where they are put on a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.distill import AnchorSettings, DistillSettings
from flow_opd.config.teachers import (
    RESERVED_NAMES,
    RoutedTeacherSettings,
    RouterSettings,
    TaskRouterSettings,
)
from flow_opd.errors import ConfigError
from flow_opd.method.objectives import OPDPolicies, Target
from flow_opd.method.routing import RoutedTeachers, TeacherField
from flow_opd.protocols import PromptEncoder, Router, VelocityField
from flow_opd.runs.base import Base
from flow_opd.runs.identity import part_identity
from flow_opd.runs.training import STUDENT

ANCHOR = "anchor"  # name of an anchor that is no teacher, in a bank

Expert = LoraWeights | VelocityField | str
"""An adapter, any velocity field, or the name of an adapter that is on the base already."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen expert and the tasks that are routed to it."""

    expert: Expert
    """An adapter, any velocity field, or the name of an adapter that is on the base already."""
    tasks: tuple[str, ...] = ()
    """Tasks whose prompts are routed to it; none: the task of the name that it is given."""
    guidance_scale: float | None = None
    """Classifier-free guidance of an adapter's velocity, >= 1; None takes the student's."""
    extrapolation: float = 1.0
    """lambda of the target v_teacher + (lambda - 1) (v_teacher - v_base), >= 1."""

    def __post_init__(self) -> None:
        """Checks the numbers, and takes a task alone.

        Raises:
            ConfigError: if one is out of its range.
        """
        if isinstance(self.tasks, str):
            object.__setattr__(self, "tasks", (self.tasks,))
        _at_least_one("guidance_scale of a teacher", self.guidance_scale)
        _at_least_one("extrapolation of a teacher", self.extrapolation)


@dataclass(frozen=True, eq=False)
class Anchor:
    """Manifold anchor regularization (MAR): keeps the student near a quality expert on every prompt."""

    expert: Expert
    """As of a teacher; or the name of a teacher, whose expert it shares."""
    weight: float = AnchorSettings.model_fields["weight"].default
    """lambda, weight of the loss to the anchor relative to the loss to the teachers."""
    share: float | None = None
    """Share of the states at which it is evaluated; None takes an eighth with the direct KL, else all."""
    guidance_scale: float | None = None
    """Classifier-free guidance of an adapter's velocity, >= 1; None takes the student's."""

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: if one is out of its range.
        """
        _at_least_one("guidance_scale of an anchor", self.guidance_scale)
        if not 0 < self.weight < float("inf"):
            fix = "give its weight, or no anchor"
            raise ConfigError("weight of an anchor", value=self.weight, allowed="numbers above 0", fix=fix)
        if self.share is not None and not 0 < self.share <= 1:
            allowed, fix = "above 0, up to 1", "give a share of the states, or None"
            raise ConfigError("share of an anchor", value=self.share, allowed=allowed, fix=fix)


def _at_least_one(what: str, value: float | None) -> None:
    if value is not None and not 1 <= value < float("inf"):
        raise ConfigError(what, value=value, allowed="numbers from 1", fix="1 switches it off")


class Experts:
    """Teachers and anchor on a base, as velocity fields."""

    def __init__(
        self,
        base: Base,
        teachers: Mapping[str, Teacher | Expert],
        *,
        guidance_scale: float,
        encoder: PromptEncoder,
        router: Router | RouterSettings | None = None,
    ) -> None:
        """Puts the teachers' adapters on the base.

        Args:
            base: that they share.
            teachers: name -> teacher; an expert alone has the task of its name.
            guidance_scale: of those that name none.
            encoder: encodes the empty prompt of guidance.
            router: says which teachers answer for a prompt, or names who does; None: that of its task.

        Raises:
            ConfigError: if there are none, a name is reserved or a task has two teachers.
            AdapterError: if an adapter does not fit the base.
        """
        if not isinstance(teachers, Mapping):
            given, fix = type(teachers).__name__, "name each teacher after its task"
            raise ConfigError(
                "teachers without names", value=given, allowed="a dict, name -> teacher", fix=fix
            )
        self.base, self.encoder, self.guidance_scale = base, encoder, guidance_scale
        self.teachers = {name: _with_tasks(name, teacher) for name, teacher in teachers.items()}
        self.teacher_of_task = _owners(self.teachers)
        self._experts: dict[str, Expert] = {}  # of each teacher, on the base
        fields = {}
        for name, each in self.teachers.items():
            scale = self._scale(each)
            self._experts[name], field = self._field(name, each.expert, scale)
            fields[name] = TeacherField(field, base.policy(None, scale, encoder=encoder), each.extrapolation)
        router = TaskRouterSettings() if router is None else router
        self.by_task = isinstance(router, TaskRouterSettings)
        self._router = None if isinstance(router, RouterSettings) else router
        own = router.build(self.teacher_of_task) if isinstance(router, RouterSettings) else router
        self.routed = RoutedTeachers(fields, own)

    def policies(self, student: str, anchor: Anchor | None, *, default_share: float) -> OPDPolicies:
        """Returns all fields that take part in a distillation.

        Args:
            student: name of its adapter on the base.
            anchor: the quality expert, or None.
            default_share: of the states, at which an anchor is evaluated that sets none.

        Raises:
            AdapterError: if the anchor names an adapter that is not there, or has one of another base.
        """
        base = self.base
        own = base.policy(student, self.guidance_scale, encoder=self.encoder)
        target = None
        if anchor is not None:
            expert = anchor.expert
            if isinstance(expert, str) and expert in self.teachers:
                expert = self._experts[expert]
            field = self._field(ANCHOR, expert, self._scale(anchor))[1]
            share = default_share if anchor.share is None else anchor.share
            target = Target("anchor_gap", field, weight=anchor.weight, share=share)
        return OPDPolicies(base.backbone, own, self.routed, target)

    def identity(self, anchor: Anchor | None) -> dict[str, Any]:
        """Returns what a training with these experts is known by."""
        teachers = {
            name: {
                "expert": self._identity(each.expert),
                "tasks": sorted(each.tasks),
                "guidance_scale": each.guidance_scale,
                "extrapolation": each.extrapolation,
            }
            for name, each in self.teachers.items()
        }
        known = None
        if anchor is not None:
            shared = isinstance(anchor.expert, str) and anchor.expert in self.teachers
            who = anchor.expert if shared else self._identity(anchor.expert)
            known = {
                "expert": who,
                "weight": anchor.weight,
                "share": anchor.share,
                "guidance_scale": anchor.guidance_scale,
            }
        router = None if self._router is None else part_identity(self._router)  # else the settings know it
        return {"teachers": teachers, "anchor": known, "router_given": router}

    def _identity(self, expert: Expert) -> Any:
        """Returns what an expert is known by."""
        if isinstance(expert, str) and expert in self.base.bank.names:
            return self.base.bank.weights(expert).digest()
        return part_identity(expert)

    def _scale(self, expert: Teacher | Anchor) -> float:
        return self.guidance_scale if expert.guidance_scale is None else expert.guidance_scale

    def _field(self, name: str, expert: Expert, scale: float) -> tuple[Expert, VelocityField]:
        """Returns an expert as it can be named from now on, and its velocity field."""
        if isinstance(expert, LoraWeights):
            expert = self.base.hold(name, expert)
        if isinstance(expert, str):
            if expert not in self.base.bank.names:
                raise ConfigError(
                    f"an expert that is not on the base: {name}",
                    value=expert,
                    allowed=", ".join([*self.teachers, *self.base.bank.names]) or "an adapter, or a field",
                    fix="load it with flow_opd.load_adapter, and give what that returns",
                )
            return expert, self.base.policy(expert, scale, encoder=self.encoder)
        if not hasattr(expert, "velocity"):
            raise ConfigError(
                f"an expert that gives no velocities: {name}",
                value=type(expert).__name__,
                allowed="an adapter, the name of one on the base, or an object with a method `velocity`",
                fix="load an adapter with flow_opd.load_adapter, and give what that returns",
            )
        return expert, expert


def named_policies(settings: DistillSettings, base: Base, encoder: PromptEncoder) -> OPDPolicies:
    """Returns the fields of a distillation whose adapters are on the base, under the names of its settings.

    The student's is `STUDENT`, that of an anchor which is no teacher `ANCHOR`.
    """
    scale = settings.sampling.guidance_scale
    teachers = {each.name: teacher_of(each, each.name) for each in settings.teachers}
    anchor = None
    if settings.anchor is not None:
        anchor = anchor_of(settings.anchor, settings.anchor.teacher or ANCHOR)
    experts = Experts(base, teachers, guidance_scale=scale, encoder=encoder)
    return experts.policies(STUDENT, anchor, default_share=settings.default_anchor_share())


def as_anchor(given: Anchor | Expert | None) -> Anchor | None:
    """Returns an anchor, or an expert alone as one with the default weight."""
    return given if given is None or isinstance(given, Anchor) else Anchor(given)


def anchor_of(settings: AnchorSettings, expert: Expert) -> Anchor:
    """Returns the anchor that a configuration describes."""
    return Anchor(expert, settings.weight, settings.share, settings.guidance_scale)


def teacher_of(settings: RoutedTeacherSettings, expert: Expert) -> Teacher:
    """Returns the teacher that a configuration describes."""
    return Teacher(expert, settings.tasks, settings.guidance_scale, settings.extrapolation)


def _with_tasks(name: str, teacher: Teacher | Expert) -> Teacher:
    if not isinstance(teacher, Teacher):
        return Teacher(teacher, (name,))
    return (
        teacher
        if teacher.tasks
        else Teacher(teacher.expert, (name,), teacher.guidance_scale, teacher.extrapolation)
    )


def _owners(teachers: Mapping[str, Teacher]) -> dict[str, str]:
    """Returns task -> name of its teacher.

    Raises:
        ConfigError: if there are no teachers, a name is reserved or a task has two teachers.
    """
    owners: dict[str, str] = {}
    for name, teacher in teachers.items():
        if name in RESERVED_NAMES:
            allowed = f"any name but {', '.join(RESERVED_NAMES)}"
            raise ConfigError("a reserved name of a teacher", value=name, allowed=allowed, fix="rename it")
        for task in teacher.tasks:
            if task in owners:
                what, fix = f"task {task!r} has two teachers", "take the task from one of them"
                raise ConfigError(
                    what, value=[owners[task], name], allowed="one teacher for each task", fix=fix
                )
            owners[task] = name
    if not owners:
        raise ConfigError("no teachers", value=[], allowed="one or more", fix="name a teacher")
    return owners
