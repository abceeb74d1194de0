"""When two prompts count as the same one."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import assert_refused, refused
from flow_opd.errors import DataError
from flow_opd.prompts.jsonl import read_lines
from flow_opd.prompts.overlap import keys, leaks, plain, problems, refuse, repeats
from flow_opd.types import Prompt


def lines(*prompts: Prompt | str, name: str = "train.txt"):
    made = [Prompt(one, "t") if isinstance(one, str) else one for one in prompts]
    return [(f"{name}:{number}", prompt) for number, prompt in enumerate(made, start=1)]


def tagged(text, *include, exclude=()):
    return Prompt(text, "c", {"tag": "any", "include": list(include), "exclude": list(exclude)})


def thing(name, count=1, **facts):
    return {"class": name, "count": count, **facts}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A sign that says “Don’t Walk”!", 'a  sign that says "don\'t walk"'),
        ("it's don't", "ITS DONT"),
        ("a well-lit street.", "A well lit street"),
        ("a café at night", "A CAFÉ, at night"),
        ("ａ cat", "a cat"),
    ],
)
def test_case_punctuation_and_spacing_do_not_count(first, second):
    assert plain(first) == plain(second)
    assert repeats(lines(first, second))


@pytest.mark.parametrize(
    ("first", "second"),
    [("a red cat", "a cat red"), ("two cats", "2 cats"), ("a cat", "a cats"), ("!!!", "???")],
)
def test_other_words_do(first, second):
    assert not repeats(lines(first, second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([thing("dog"), thing("cat")], [thing("cat"), thing("dog")]),
        (
            [thing("dog", color="red"), thing("cat", color="blue")],
            [{"color": "blue", "count": 1, "class": "cat"}, thing("dog", color="red")],
        ),
        (  # a dog left of a cat, a cat right of a dog
            [thing("cat"), thing("dog", position=["left of", 0])],
            [thing("dog"), thing("cat", position=["right of", 0])],
        ),
        (
            [thing("cat"), thing("dog", position=["above", 0])],
            [thing("dog"), thing("cat", position=["below", 0])],
        ),
    ],
)
def test_one_picture_asked_for_in_two_ways_is_one_prompt(first, second):
    one, other = tagged("one wording", *first), tagged("another wording", *second)
    assert set(keys(one)) & set(keys(other))
    assert leaks(lines(one), lines(other, name="test.jsonl"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([thing("dog", 2)], [thing("dog", 3)]),
        (
            [thing("dog", color="red"), thing("cat", color="blue")],
            [thing("dog", color="blue"), thing("cat", color="red")],
        ),
        (
            [thing("cat"), thing("dog", position=["left of", 0])],
            [thing("cat"), thing("dog", position=["right of", 0])],
        ),
        (
            [thing("cat"), thing("dog", position=["left of", 0])],
            [thing("cat"), thing("dog", position=["above", 0])],
        ),
        ([thing("cat"), thing("dog", position=["left of", 0])], [thing("cat"), thing("dog")]),
        (  # what breaks the schema is compared as it stands
            [thing("cat"), thing("dog", position=["beside", 0])],
            [thing("cat"), thing("dog", position=["beside", 7])],
        ),
    ],
)
def test_other_pictures_are_other_prompts(first, second):
    assert not leaks(lines(tagged("one wording", *first)), lines(tagged("another wording", *second)))


def test_limits_belong_to_the_picture():
    some = tagged("some dogs", thing("dog", 2))
    exact = tagged("exactly two dogs", thing("dog", 2), exclude=[thing("dog", 3)])
    assert not leaks(lines(some), lines(exact))


def test_things_without_a_tag_are_known_by_their_words_alone():
    """The miniature's scenes have include lists too, beside a background that changes the picture."""
    day = Prompt("a red circle in the sky", "q", {"include": [thing("circle")], "background": "sky"})
    night = Prompt("a red circle at night", "q", {"include": [thing("circle")], "background": "night"})
    assert not repeats(lines(day, night))


def test_messages_name_the_lines_of_both_sides(tmp_path: Path):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("a cat\n\na dog\nA cat.\na bird\n")
    test.write_text("a horse\nA bird\nA dog!\n")
    mine, theirs = read_lines(train, task="t"), read_lines(test, task="t")
    messages = problems("train.txt", mine, repeated=False, others={"test.txt": theirs})
    assert len(messages) == 2
    assert f"{train}:4 'A cat.' = {train}:1 'a cat'" in messages[0]
    assert f"{train}:3 'a dog' = {test}:3 'A dog!'" in messages[1]
    assert f"{train}:5 'a bird' = {test}:2 'A bird'" in messages[1]
    for message in messages:
        assert_refused(message, names=["train.txt"])
    assert problems("train.txt", mine, repeated=True) == []
    with refused(DataError, value=1) as caught:
        refuse(messages)
    assert_refused(caught.value, value=2, names=["test.txt"])
    refuse([])


def test_long_lists_are_cut():
    same = lines(*["a cat"] * 40)
    (message,) = problems("train.txt", same, repeated=False)
    assert message.count("train.txt:1 'a cat'") == 10
    assert message.endswith("and 29 more")
