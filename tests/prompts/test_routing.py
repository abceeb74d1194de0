"""Hard routing by task."""

from __future__ import annotations

import pytest
import torch

from errors import refused
from flow_opd.errors import DataError
from flow_opd.method.routing import HardRouter, check_judged, check_routes
from flow_opd.types import Conditioning, Prompt


def conditioning(*tasks: str) -> Conditioning:
    return Conditioning(torch.zeros(len(tasks), 2, 3), torch.zeros(len(tasks), 4), tasks)


def test_weights_are_one_hot_by_task() -> None:
    router = HardRouter({"composition": "composer", "text": "writer", "signs": "writer"})
    assert router.teachers == ("composer", "writer")
    alpha = router.weights(conditioning("text", "composition", "signs", "text"))
    assert torch.equal(alpha, torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))


def test_task_without_teacher_is_refused() -> None:
    with refused(DataError, value="txt", names=["'text'"]):
        HardRouter({"text": "writer"}).weights(conditioning("text", "txt"))


def test_routes_that_cover_everything_pass() -> None:
    check_routes([Prompt("a", "text"), Prompt("b", "text")], {"text": "writer"})


def test_all_gaps_are_named_at_once() -> None:
    prompts = [Prompt("a cat", "quality"), Prompt("a dog", "quality"), Prompt("a sign", "text")]
    with pytest.raises(DataError) as caught:
        check_routes(prompts, {"text": "writer", "qualty": "judge", "composition": "composer"})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "a prompt's task has no teacher: 'quality'" in lines[0]
    assert "The first such prompt: 'a cat'" in lines[0]
    assert "teacher 'judge' has no prompt for its task: 'qualty'" in lines[1]
    assert "Did you mean 'quality'?" in lines[1]
    assert "teacher 'composer' has no prompt for its task: 'composition'" in lines[2]


def test_every_prompt_is_judged_and_every_reward_judges() -> None:
    prompts = [Prompt("a cat", "quality"), Prompt("a sign", "text")]
    check_judged(prompts, {"deqa": None})
    check_judged(prompts, {"deqa": ["quality"], "ocr": ["text"], "pickscore": ["text", "quality"]})
    with pytest.raises(DataError) as caught:
        check_judged(prompts, {"ocr": ["text", "signs"], "deqa": ["qualty"]})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "no reward judges the prompts of a task: 'quality'" in lines[0]
    assert "Did you mean 'qualty'?" in lines[0]
    assert "The first such prompt: 'a cat'" in lines[0]
    assert "reward 'ocr' has no prompt for its task: 'signs'" in lines[1]
    assert "reward 'deqa' has no prompt for its task: 'qualty'" in lines[2]
