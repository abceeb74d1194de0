"""The prompts of a run, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flow_opd.config.common import PromptsSettings
from flow_opd.config.file.reader import from_values
from flow_opd.config.locations import locate
from flow_opd.errors import DataError
from flow_opd.prompts.jsonl import read_lines
from flow_opd.prompts.overlap import problems, refuse
from flow_opd.types import Prompt


def prompts_of(files: Sequence[PromptsSettings]) -> list[Prompt]:
    """Returns the prompts of all files, in order.

    Raises:
        DataError: for files that cannot be read; where the settings ask for it, also for prompts that are
            there twice or in a file that may share none.
    """
    return [prompt for file in files for prompt in _load_file(file)]


def load_prompts(*files: str | Path, task: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Returns the prompts of files, in order.

    Args:
        files: text files (a prompt a line) or jsonl ('prompt' and 'task', or GenEval metadata); paths, or
            'asset:NAME' of the package.
        task: of all prompts in files whose lines do not name theirs.
        limit: takes only so many from the start of each file.

    Raises:
        ConfigError: if a file does not exist.
        DataError: if one cannot be read as prompts.
    """
    named = [{"path": str(file), "task": task, "limit": limit} for file in files]
    return prompts_of([from_values(values, PromptsSettings, source="load_prompts") for values in named])


def as_prompts(prompts: Sequence[Prompt | str]) -> list[Prompt]:
    """Returns prompts, where a sentence alone has no task.

    Raises:
        DataError: if there are none, or they are one sentence and no list of them.
    """
    listed = not isinstance(prompts, str) and isinstance(prompts, Sequence)
    if not listed or not prompts or not all(isinstance(one, str | Prompt) for one in prompts):
        allowed, fix = "a list of prompts or sentences", "put what is drawn into a list"
        raise DataError("no prompts", value=prompts, allowed=allowed, fix=fix)
    return [Prompt(one, task="") if isinstance(one, str) else one for one in prompts]


def _load_file(file: PromptsSettings) -> list[Prompt]:
    lines = read_lines(
        locate(file.path, key="prompts.path"), task=file.task, text_in_quotes=file.text_in_quotes
    )[: file.limit]
    others = {
        name: read_lines(locate(name, key="prompts.disjoint_from"), task="none")
        for name in file.disjoint_from
    }
    refuse(problems(file.path, lines, repeated=not file.unique, others=others))
    return [prompt for _, prompt in lines]
