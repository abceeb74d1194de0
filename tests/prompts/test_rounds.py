"""Dealing prompts out to rounds: whole epochs, exact resume, fair shares."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import refused
from flow_opd.errors import DataError
from flow_opd.method.rounds import PromptRounds
from flow_opd.types import Prompt

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12), min_size=1, max_size=5)


def prompts_of(counts: dict[str, int]) -> list[Prompt]:
    return [Prompt(f"{task}{index}", task) for task, count in counts.items() for index in range(count)]


def texts(groups: PromptRounds, rounds: range) -> list[str]:
    return [prompt.text for index in rounds for prompt in groups.round(index)]


@settings(deadline=None, max_examples=50)
@given(COUNTS, st.integers(0, 9), st.integers(1, 17))
def test_every_prompt_comes_once_per_epoch(counts: dict[str, int], seed: int, size: int) -> None:
    dealt = texts(PromptRounds(prompts_of(counts), seed, size), range(60))
    assert len(dealt) == 60 * size
    for task, count in counts.items():
        own = [text for text in dealt if text[0] == task]
        for start in range(0, len(own) - count + 1, count):
            assert len(set(own[start : start + count])) == count


@settings(deadline=None, max_examples=50)
@given(COUNTS, st.integers(0, 9), st.integers(1, 17), st.lists(st.integers(0, 40), max_size=6))
def test_a_round_depends_on_seed_and_index_alone(
    counts: dict[str, int], seed: int, size: int, indices: list[int]
) -> None:
    prompts = prompts_of(counts)
    whole = PromptRounds(prompts, seed, size)
    straight = {index: whole.round(index) for index in range(41)}
    resumed = PromptRounds(prompts, seed, size)
    for index in indices:  # in any order, repeated, or with holes
        assert resumed.round(index) == straight[index]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 17),
    st.integers(0, 30),
    st.integers(1, 30),
)
def test_tasks_get_their_shares_in_any_stretch(
    weights: list[int], size: int, start: int, rounds: int
) -> None:
    shares = {task: float(weight) for task, weight in zip("abcdef", weights, strict=False)}
    groups = PromptRounds(prompts_of(dict.fromkeys(shares, 3)), 0, size, shares)
    got = Counter(text[0] for text in texts(groups, range(start, start + rounds)))
    total = size * rounds
    for task, share in shares.items():
        expected = total * share / sum(weights)
        assert abs(got[task] - expected) <= len(weights) + total / 1000 * len(weights)


def test_equal_shares_are_exact_where_they_divide() -> None:
    groups = PromptRounds(prompts_of({"a": 2, "b": 50, "c": 7, "d": 9}), 0, 8)
    for index in range(20):
        assert Counter(prompt.task for prompt in groups.round(index)) == {"a": 2, "b": 2, "c": 2, "d": 2}
        assert {prompt.task for prompt in groups.round(index)[:4]} == {"a", "b", "c", "d"}  # interleaved


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    prompts = prompts_of({"a": 30})
    first, second = (texts(PromptRounds(prompts, 0, 30), range(index, index + 1)) for index in (0, 1))
    other = texts(PromptRounds(prompts, 1, 30), range(1))
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second
    assert first != other
    assert first != [prompt.text for prompt in prompts]


def test_tasks_of_one_size_are_shuffled_apart() -> None:
    dealt = texts(PromptRounds(prompts_of({"a": 30, "b": 30}), 0, 60), range(1))
    assert [text[1:] for text in dealt if text[0] == "a"] != [text[1:] for text in dealt if text[0] == "b"]


@pytest.mark.parametrize(
    "shares",
    [{"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": float("nan")}],
)
def test_shares_that_do_not_match_are_refused(shares: dict[str, float]) -> None:
    with refused(DataError, value=shares, names=["a, b"]):
        PromptRounds(prompts_of({"a": 1, "b": 1}), 0, 2, shares)


def test_no_prompts_are_refused() -> None:
    with refused(DataError, value=0):
        PromptRounds([], 0, 2)


@settings(deadline=None, max_examples=25)
@given(COUNTS, st.integers(0, 9), st.integers(1, 17))
def test_rows_are_where_the_prompts_stand(counts: dict[str, int], seed: int, size: int) -> None:
    prompts = prompts_of(counts)
    groups = PromptRounds(prompts, seed, size)
    for index in (0, 3):
        assert [prompts[row] for row in groups.rows(index)] == groups.round(index)
