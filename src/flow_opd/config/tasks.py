"""How the rounds of a training hold its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Set

from flow_opd.config.base import Problem


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
