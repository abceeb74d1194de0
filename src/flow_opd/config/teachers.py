"""Settings of the experts that a student learns from, and how a round holds their tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from flow_opd.config.base import Name, Problem, Settings
from flow_opd.config.common import duplicates
from flow_opd.config.kinds import Kind, load
from flow_opd.config.parts import Part

if TYPE_CHECKING:
    from flow_opd.protocols import Router

RESERVED_NAMES = ("student", "anchor")  # adapters that stand beside the teachers in one base


class RouterSettings(Part):
    """How much of each teacher a prompt gets. A class of one's own is one of `flow_opd.protocols.Router`; its
    `__init__` may take `teacher_of_task`, task -> name of its teacher."""

    kind: ClassVar[Kind] = Kind(
        "router",
        "flow_opd.routers",
        {"task": "flow_opd.config.teachers:TaskRouterSettings"},
        method="weights",
        takes=None,
        context=("teacher_of_task",),
    )

    def build(self, teacher_of_task: Mapping[str, str]) -> Router:
        """Returns the router of teachers, given task -> name of its teacher."""
        router: Router = self.made({"teacher_of_task": teacher_of_task})
        return router


class TaskRouterSettings(RouterSettings):
    """Each prompt to the teacher of its task."""

    name: Literal["task"] = "task"
    """Which router this is."""

    def build(self, teacher_of_task: Mapping[str, str]) -> Router:
        """Returns the router."""
        router: Router = load("flow_opd.method.routing:HardRouter")(teacher_of_task)
        return router


class RoutedTeacherSettings(Settings):
    """A frozen expert and the tasks that are routed to it."""

    name: Name
    """Name of the teacher in logs and tables."""
    tasks: tuple[Name, ...]
    """Tasks whose prompts are routed to this teacher."""
    adapter: Name
    """Adapter: a path, 'asset:NAME' or a hub id 'owner/name[@revision]'."""
    guidance_scale: Annotated[float, Field(ge=1)] = 4.5
    """Classifier-free guidance of the teacher's velocity; 1 switches it off."""
    extrapolation: Annotated[float, Field(ge=1)] = 1.0
    """lambda of the target v_teacher + (lambda - 1) (v_teacher - v_base); above 1 it lies beyond it."""


def teachers_by_task(teachers: Sequence[RoutedTeacherSettings]) -> dict[str, str]:
    """Returns task -> name of its teacher."""
    return {task: teacher.name for teacher in teachers for task in teacher.tasks}


def teacher_problems(teachers: Sequence[RoutedTeacherSettings]) -> list[Problem]:
    """Returns what is wrong with a list under the key 'teachers': names, and tasks that are not one's own."""
    problems: list[Problem] = []
    owner: dict[str, str] = {}
    for index, teacher in enumerate(teachers):
        at = ("teachers", index)
        if teacher.name in RESERVED_NAMES:
            allowed = f"any name but {', '.join(RESERVED_NAMES)}"
            problems.append(Problem((*at, "name"), "a reserved name", teacher.name, allowed, "rename it"))
        if not teacher.tasks:
            what = f"teacher {teacher.name!r} has no tasks"
            problems.append(
                Problem((*at, "tasks"), what, [], "one task or more", "add its tasks or remove it")
            )
        for task in teacher.tasks:
            if task in owner:
                what = f"task {task!r} has two teachers"
                allowed, fix = "one teacher for each task", "take the task from one of them"
                problems.append(Problem((*at, "tasks"), what, [owner[task], teacher.name], allowed, fix))
            owner.setdefault(task, teacher.name)
    return problems + [
        Problem(
            ("teachers", index, "name"), "two teachers with one name", name, "distinct names", "rename one"
        )
        for index, name in duplicates([teacher.name for teacher in teachers])
    ]


def task_problems(
    tasks: Set[str], shares: Mapping[str, float] | None, *, prompts: int, key: str, of: str
) -> list[Problem]:
    """Returns what is wrong with a round of several tasks: shares of others, or fewer prompts than tasks.

    Args:
        tasks: of the training.
        shares: task -> share in a round, or None for equal ones.
        prompts: of a round.
        key: setting that decides their number.
        of: whose tasks these are, for the message.
    """
    problems = []
    if shares is not None and set(shares) != tasks:
        problems.append(
            Problem(
                ("task_shares",),
                f"shares that do not match the {of}' tasks",
                sorted(shares),
                ", ".join(sorted(tasks)),
                "give one share for each task",
            )
        )
    if prompts < len(tasks):
        problems.append(
            Problem(
                (key,),
                "a round that cannot hold every task",
                prompts,
                f"at least {len(tasks)}, one prompt for each of {', '.join(sorted(tasks))}",
                "raise it",
            )
        )
    return problems
