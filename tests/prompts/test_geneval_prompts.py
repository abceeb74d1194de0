"""New composition prompts: grammar, schema, sameness, and what the GenEval reward makes of them."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import refused
from flow_opd.config.prompts import TagSharesSettings
from flow_opd.errors import DataError
from flow_opd.prompts.geneval import CLASSES, COLORS, OPPOSITES, caption, item, new_prompts, plural, pools
from flow_opd.prompts.jsonl import read_lines, write_prompts
from flow_opd.prompts.overlap import keys, leaks, repeats
from flow_opd.rewards.detectors import Detection
from flow_opd.rewards.geneval import RELATIONS, TAGS, GenEvalReward
from flow_opd.types import Prompt
from oracles import read_prompts

EQUAL = dict.fromkeys(TAGS, 1.0)
FLOW_GRPO = TagSharesSettings().model_dump()


def draw(n, *, seed=0, shares=EQUAL, taken=(), task="composition"):
    return new_prompts(n, seed=seed, task=task, shares=shares, taken=set(taken))


def every_wording():
    """All pictures of the three small tags, and some of the large ones, in every wording."""
    for pool in pools("composition").values():
        for number in range(0, pool.size, 1 if pool.size < 1000 else pool.size // 500):
            yield from pool.wordings(number)


def test_words_are_those_of_the_reward_and_of_coco():
    assert tuple(pools("t")) == TAGS
    assert set(TagSharesSettings.model_fields) == set(TAGS)
    assert tuple(OPPOSITES) == RELATIONS
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert (CLASSES[0], CLASSES[11], CLASSES[79]) == ("person", "stop sign", "toothbrush")
    assert {"computer mouse", "tv remote", "computer keyboard"} < set(CLASSES)
    assert len(set(COLORS)) == 10
    sizes = {tag: pool.size for tag, pool in pools("t").items()}
    # 80; 80 79 / 2; 3 counts; 10 colours of 79; 4 relations; 79 78 / 2 pairs in 10 9 colours
    assert sizes == {
        "single_object": 80,
        "two_object": 3160,
        "counting": 240,
        "colors": 790,
        "position": 12640,
        "color_attr": 277290,
    }


@pytest.mark.parametrize(
    ("include", "sentence"),
    [
        ([item("airplane")], "a photo of an airplane"),
        ([item("car"), item("umbrella")], "a photo of a car and an umbrella"),
        ([item("wine glass", 2)], "a photo of two wine glasses"),
        ([item("tv remote", color="black")], "a photo of a black tv remote"),
        ([item("orange", color="orange")], "a photo of an orange orange"),
        (
            [item("toothbrush"), {**item("kite"), "position": ["above", 0]}],
            "a photo of a kite above a toothbrush",
        ),
        (
            [item("surfboard", color="green"), item("oven", color="orange")],
            "a photo of a green surfboard and an orange oven",
        ),
        ([item("scissors", color="red")], "a photo of a pair of red scissors"),
        ([item("skis", 3)], "a photo of three pairs of skis"),
    ],
)
def test_wording(include, sentence):
    assert caption(include) == sentence


def test_plurals_are_english():
    special = {
        "person": "people",
        "bus": "buses",
        "bench": "benches",
        "sheep": "sheep",
        "wine glass": "wine glasses",
        "knife": "knives",
        "sandwich": "sandwiches",
        "couch": "couches",
        "computer mouse": "computer mice",
        "toothbrush": "toothbrushes",
    }
    for name in CLASSES:
        if name not in ("skis", "scissors"):
            assert plural(name) == special.get(name, name + "s")


def test_grammar():
    sentences = [prompt.text for prompt in every_wording()]
    assert len(sentences) > 3000
    for sentence in sentences:
        assert sentence.startswith("a photo of ")
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |\b(a|an) (skis|scissors)\b", sentence), sentence
        number = re.search(r"\b(two|three|four) (.*)", sentence)
        if number:
            assert re.search(r"(s|people|mice|sheep)( of (skis|scissors))?$", number[2]), sentence
            assert not re.search(r"(chs|shs|persons|mouses|sheeps|knifes)$", number[2]), sentence


def test_metadata_follow_the_schema():
    for prompt in every_wording():
        tag, include = prompt.metadata["tag"], prompt.metadata["include"]
        assert prompt.text == caption(include)
        assert len(include) == (2 if tag in ("two_object", "position", "color_attr") else 1)
        assert len({entry["class"] for entry in include}) == len(include)
        assert all(("color" in entry) == tag.startswith("color") for entry in include)
        assert ["position" in entry for entry in include] == [False] * (len(include) - 1) + [
            tag == "position"
        ]
        if tag == "counting":
            assert prompt.metadata["exclude"] == [item(include[0]["class"], include[0]["count"] + 1)]
            assert include[0]["count"] in (2, 3, 4)
        else:
            assert "exclude" not in prompt.metadata
        if tag.startswith("color"):
            assert "person" not in {entry["class"] for entry in include}
            assert len({entry["color"] for entry in include}) == len(include)


def test_no_two_numbers_ask_for_one_picture():
    """All numbers, but for every 37th of the largest tag."""
    every = pools("t").values()
    numbers = [
        (pool, number) for pool in every for number in range(0, pool.size, 37 if pool.size > 20_000 else 1)
    ]
    owners = Counter(
        key for pool, number in numbers for key in {keys(one)[1] for one in pool.wordings(number)}
    )
    assert len(numbers) > 24_000
    assert max(owners.values()) == 1


def test_both_wordings_ask_for_one_picture():
    for tag in ("two_object", "position", "color_attr"):
        first, second = pools("t")[tag].wordings(77)
        assert first.text != second.text
        assert set(keys(first)) & set(keys(second))


@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**40),
    n=st.integers(1, 80),
    shares=st.fixed_dictionaries({tag: st.integers(0, 9) for tag in TAGS}),
)
def test_sets_are_deterministic_without_duplicates_and_read_back(tmp_path_factory, seed, n, shares):
    shares = {**shares, "color_attr": shares["color_attr"] + 1}
    prompts = draw(n, seed=seed, shares=shares).prompts
    assert len(prompts) == n
    assert draw(n, seed=seed, shares=shares).prompts == prompts
    file = tmp_path_factory.mktemp("prompts") / "new.jsonl"
    write_prompts(file, prompts)
    assert read_prompts(file) == prompts
    assert repeats(read_lines(file)) == []
    assert {prompt.metadata["tag"] for prompt in prompts} <= {tag for tag in TAGS if shares[tag]}


def test_seeds_differ_and_both_orders_come():
    first, second = draw(200, seed=1).prompts, draw(200, seed=2).prompts
    assert len({prompt.text for prompt in first} & {prompt.text for prompt in second}) < 60
    positions = [prompt.metadata["include"] for prompt in first if prompt.metadata["tag"] == "position"]
    in_order = [CLASSES.index(one["class"]) < CLASSES.index(other["class"]) for one, other in positions]
    assert 0 < sum(in_order) < len(in_order)


def test_shares_are_kept_in_every_stretch():
    """Flow-GRPO's mixture, 7 : 5 : 3 : 1 : 1 : 0, in steps of 17."""
    drawn = draw(170, shares=FLOW_GRPO)
    assert drawn.used_up == ()
    for start in range(0, 170, 17):
        tags = Counter(prompt.metadata["tag"] for prompt in drawn.prompts[start : start + 17])
        assert tags == {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}


def test_a_tag_that_is_used_up_passes_its_share_on():
    drawn = draw(600, shares={**dict.fromkeys(TAGS, 0), "counting": 2, "position": 1, "two_object": 1})
    assert drawn.used_up == ("counting",)
    tags = Counter(prompt.metadata["tag"] for prompt in drawn.prompts)
    assert tags["counting"] == 240
    assert abs(tags["position"] - tags["two_object"]) <= 1


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 1000), other=st.integers(0, 1000))
def test_excluded_pictures_never_come(seed, other):
    excluded = draw(300, seed=other).prompts
    taken = {key for prompt in excluded for key in keys(prompt)}
    prompts = draw(300, seed=seed, taken=taken).prompts
    assert not leaks([("new", prompt) for prompt in prompts], [("old", prompt) for prompt in excluded])


@pytest.mark.parametrize("things", ["a cat and a dog", "a dog and a cat"])
def test_an_excluded_sentence_excludes_the_other_wording_too(things):
    only = {**dict.fromkeys(TAGS, 0), "two_object": 1}
    taken = {f"sentence a photo of {things}"}
    prompts = draw(3159, shares=only, taken=taken).prompts
    assert not {"a photo of a cat and a dog", "a photo of a dog and a cat"} & {each.text for each in prompts}
    with pytest.raises(DataError):
        draw(3160, shares=only, taken=taken)


def test_more_than_there_are_is_refused():
    only = {**dict.fromkeys(TAGS, 0), "counting": 3, "single_object": 1}
    assert len(draw(320, shares=only).prompts) == 320
    with refused(DataError, value=321, names=["320", "single_object, counting", " n"]):
        draw(321, shares=only)


def test_a_task_may_name_the_tag():
    prompts = draw(60, task="composition-{tag}").prompts
    assert all(prompt.task == f"composition-{prompt.metadata['tag']}" for prompt in prompts)
    assert [prompt.metadata for prompt in prompts] == [prompt.metadata for prompt in draw(60).prompts]


@pytest.mark.parametrize(
    "line",
    [
        {
            "tag": "counting",
            "include": [{"class": "bench", "count": 4}],
            "exclude": [{"class": "bench", "count": 5}],
            "prompt": "a photo of four benchs",
        },
        {
            "tag": "position",
            "include": [
                {"class": "zebra", "count": 1},
                {"class": "skis", "count": 1, "position": ["right of", 0]},
            ],
            "prompt": "a photo of a skis right of a zebra",
        },
        {
            "tag": "color_attr",
            "include": [
                {"class": "handbag", "count": 1, "color": "pink"},
                {"class": "scissors", "count": 1, "color": "black"},
            ],
            "prompt": "a photo of a pink handbag and a black scissors",
        },
    ],
)
def test_lines_in_genevals_own_wording_are_known_by_their_meaning(tmp_path, line):
    (tmp_path / "test.jsonl").write_text(json.dumps(line))
    (theirs,) = read_prompts(tmp_path / "test.jsonl", task="composition")
    ours = Prompt(caption(line["include"]), "composition", theirs.metadata)
    assert ours.text != theirs.text
    assert leaks([("ours", ours)], [("theirs", theirs)])


class Told:
    """A detector that has been told what is in the pictures."""

    classes, colors = CLASSES, COLORS

    def __init__(self, pictures: list[list[Detection]]) -> None:
        self.pictures = pictures

    def detect(self, images, colored=None):
        assert len(images) == len(self.pictures)
        return self.pictures


def seen(entry, x, y):
    return Detection(entry["class"], entry.get("color", "white"), (x, y, x + 20, y + 20), 0.95)


def right_picture(metadata) -> list[Detection]:
    """What a picture of a prompt holds."""
    include = metadata["include"]
    if "position" not in include[-1]:
        return [
            seen(entry, 40 * number, 40 * row)
            for row, entry in enumerate(include)
            for number in range(entry["count"])
        ]
    dx, dy = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[
        include[1]["position"][0]
    ]
    return [seen(include[0], 200, 200), seen(include[1], 200 + 100 * dx, 200 + 100 * dy)]


def wrong_pictures(metadata) -> list[list[Detection]]:
    """Pictures that are right but for the fact that the tag tests."""
    tag, include, right = metadata["tag"], metadata["include"], right_picture(metadata)
    if tag == "single_object":
        return [[], [seen(item("vase" if include[0]["class"] != "vase" else "cup"), 0, 0)]]
    if tag == "two_object":
        return [right[:1], right[1:]]
    if tag == "counting":
        return [right[1:], [*right, seen(include[0], 300, 300)]]
    if tag == "position":
        return [[right[0], seen(include[1], 400 - right[1].box[0], 400 - right[1].box[1])]]
    others = [COLORS[COLORS.index(entry["color"]) - 1] for entry in include]
    wrong = [
        [*right[:place], seen({**include[place], "color": color}, *right[place].box[:2]), *right[place + 1 :]]
        for place, color in enumerate(others)
    ]
    if tag == "color_attr":
        one, other = include
        wrong.append(
            [seen({**one, "color": other["color"]}, 0, 0), seen({**other, "color": one["color"]}, 0, 40)]
        )
    return wrong


def test_the_reward_accepts_right_pictures_and_refuses_wrong_ones():
    prompts = draw(300, seed=5).prompts
    right = [right_picture(prompt.metadata) for prompt in prompts]
    wrong = [(prompt, picture) for prompt in prompts for picture in wrong_pictures(prompt.metadata)]

    def score(asked, pictures):
        reward = GenEvalReward(Told(pictures), threshold=0.3, counting_threshold=0.9)
        return reward.score(torch.zeros(len(asked), 3, 4, 4), asked)

    accepted = score(prompts, right)
    assert accepted.valid.all()
    assert accepted.values.tolist() == [1.0] * len(prompts)
    assert accepted.parts["strict"].tolist() == [1.0] * len(prompts)
    refused = score([prompt for prompt, _ in wrong], [picture for _, picture in wrong])
    assert refused.valid.all()
    assert refused.parts["strict"].tolist() == [0.0] * len(wrong)
    assert refused.values.max() < 1
    assert {prompt.metadata["tag"] for prompt, _ in wrong} == set(TAGS)


def test_lines_have_geneval_keys(tmp_path):
    write_prompts(tmp_path / "p.jsonl", draw(60).prompts)
    for line in (tmp_path / "p.jsonl").read_text().splitlines():
        assert set(json.loads(line)) - {"exclude"} == {"prompt", "task", "tag", "include"}
