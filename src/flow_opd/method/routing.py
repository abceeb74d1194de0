"""Routing: which teacher a prompt is routed to, and all of them behind one velocity field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_opd.errors import ConfigError, DataError, explain, nearest
from flow_opd.method.joint import FieldShare, joint_velocities
from flow_opd.protocols import Router, VelocityField
from flow_opd.types import Conditioning, Prompt


class HardRouter:
    """alpha_k(c) = 1 for the teacher of the prompt's task, 0 for all others.

    Source: Flow-OPD, arXiv 2605.08063 (task routing).
    """

    def __init__(self, teacher_of_task: Mapping[str, str]) -> None:
        """Remembers task -> teacher; a teacher may have several tasks."""
        self.teacher_of_task = dict(teacher_of_task)
        self.teachers: tuple[str, ...] = tuple(dict.fromkeys(self.teacher_of_task.values()))

    def weights(self, conditioning: Conditioning) -> Tensor:
        """Returns alpha, one-hot rows, [M, K], float32, on the CPU.

        Raises:
            DataError: if a row's task has no teacher.
        """
        for task in conditioning.tasks:
            if task not in self.teacher_of_task:
                raise DataError(_no_teacher(task, self.teacher_of_task))
        column = {teacher: index for index, teacher in enumerate(self.teachers)}
        columns = [column[self.teacher_of_task[task]] for task in conditioning.tasks]
        alpha = torch.zeros(len(columns), len(self.teachers))
        alpha[range(len(columns)), columns] = 1.0
        return alpha


def check_routes(prompts: Iterable[Prompt], teacher_of_task: Mapping[str, str]) -> None:
    """Checks that every prompt has a teacher and every teacher, for each of its tasks, a prompt.

    Raises:
        DataError: naming all prompts' tasks without a teacher, and all teachers' tasks without a prompt.
    """
    example = _examples(prompts)
    problems = [
        f"{_no_teacher(task, teacher_of_task)} The first such prompt: {prompt.text!r}."
        for task, prompt in example.items()
        if task not in teacher_of_task
    ]
    problems += [
        _no_prompt(f"teacher {teacher!r}", task, example)
        for task, teacher in teacher_of_task.items()
        if task not in example
    ]
    if problems:
        raise DataError("\n".join(problems))


def check_judged(prompts: Iterable[Prompt], tasks_of_reward: Mapping[str, Sequence[str] | None]) -> None:
    """Checks that a reward judges every prompt, and that every reward has prompts of each of its tasks.

    Args:
        prompts: of the training.
        tasks_of_reward: name of a reward -> tasks whose prompts it judges, None for all.

    Raises:
        DataError: naming all prompts' tasks without a reward, and all rewards' tasks without a prompt.
    """
    example = _examples(prompts)
    judged = {task for tasks in tasks_of_reward.values() for task in (example if tasks is None else tasks)}
    problems = [
        explain(
            "no reward judges the prompts of a task",
            value=task,
            allowed=f"the tasks of the rewards: {', '.join(sorted(judged))}",
            fix=f"{nearest(task, judged).strip()} Correct the task or give it to a reward".strip(),
        )
        + f" The first such prompt: {prompt.text!r}."
        for task, prompt in example.items()
        if task not in judged
    ]
    problems += [
        _no_prompt(f"reward {reward!r}", task, example)
        for reward, tasks in tasks_of_reward.items()
        for task in tasks or ()
        if task not in example
    ]
    if problems:
        raise DataError("\n".join(problems))


def _examples(prompts: Iterable[Prompt]) -> dict[str, Prompt]:
    """Returns the first prompt of each task."""
    example: dict[str, Prompt] = {}
    for prompt in prompts:
        example.setdefault(prompt.task, prompt)
    return example


def _no_prompt(who: str, task: str, example: Mapping[str, Prompt]) -> str:
    return explain(
        f"{who} has no prompt for its task",
        value=task,
        allowed=f"tasks that have prompts: {', '.join(sorted(example)) or 'none'}",
        fix=f"{nearest(task, example).strip()} Add prompts of it or take it from {who}".strip(),
    )


def _no_teacher(task: str, teacher_of_task: Mapping[str, str]) -> str:
    return explain(
        "a prompt's task has no teacher",
        value=task,
        allowed=", ".join(sorted(teacher_of_task)) or "no task at all",
        fix=f"{nearest(task, teacher_of_task).strip()} Correct the task or give it a teacher".strip(),
    )


@dataclass(frozen=True)
class TeacherField:
    """Target of a teacher: its own velocity, or one extrapolated beyond it from the base's.

        v = v_teacher + (lambda - 1) (v_teacher - v_base)

    Source: GFD-OPD and STEP-OPD (arXiv 2608.04887), extrapolated targets; lambda = 1 is the teacher itself.
    """

    field: VelocityField
    base: VelocityField | None = None  # under the teacher's guidance; needed where lambda is not 1
    extrapolation: float = 1.0  # lambda

    def __post_init__(self) -> None:
        """Checks that an extrapolation has a base to start from."""
        assert self.extrapolation == 1.0 or self.base is not None

    def shares(self, rows: Tensor, weight: Tensor) -> list[FieldShare]:
        """Returns the fields that make up the target at `rows`, [N], times `weight`, [N]."""
        if self.base is None or self.extrapolation == 1.0:
            return [FieldShare(self.field, rows, weight)]
        return [
            FieldShare(self.field, rows, weight * self.extrapolation),
            FieldShare(self.base, rows, weight * (1.0 - self.extrapolation)),
        ]


class RoutedTeachers:
    """v_target(x, c) = sum_k alpha_k(c) v_k(x, c); each teacher sees only the rows it has a share in.

    Source: Flow-OPD, arXiv 2605.08063 (task routing).
    """

    def __init__(self, teachers: Mapping[str, TeacherField], router: Router) -> None:
        """Joins teachers and router.

        Raises:
            ConfigError: if the router names a teacher that is none.
        """
        unknown = [name for name in router.teachers if name not in teachers]
        if unknown:
            fix = "let its `teachers` name those of the training"
            raise ConfigError(
                "a router of other teachers", value=unknown, allowed=", ".join(teachers), fix=fix
            )
        self.teachers = teachers
        self.router = router

    def shares(self, conditioning: Conditioning) -> list[FieldShare]:
        """Returns the routed target as a sum over fields; teachers without a row are there, too."""
        alpha = self.router.weights(conditioning)
        expected = (len(conditioning.tasks), len(self.router.teachers))
        if tuple(alpha.shape) != expected:
            raise ConfigError(
                "a router whose weights fit no teacher",
                value=f"shape {list(alpha.shape)}",
                allowed=f"{list(expected)}: a row for each prompt, a column for each teacher",
                fix="correct its method `weights`",
            )
        shares: list[FieldShare] = []
        for column, name in enumerate(self.router.teachers):
            rows = torch.nonzero(alpha[:, column]).flatten()
            shares += self.teachers[name].shares(rows, alpha[rows, column])
        return shares

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the routed velocity, [M, C, H, W], float32; all teachers run in one pass."""
        return joint_velocities([self.shares(conditioning)], latents, sigma, conditioning)[0]
