"""New prompts that quote words to be drawn, and what the OCR reward makes of them."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from errors import refused
from flow_opd.errors import DataError
from flow_opd.prompts import words
from flow_opd.prompts.jsonl import quotations, read_lines, write_prompts
from flow_opd.prompts.ocr import PHRASES, SCENES, new_prompts
from flow_opd.prompts.overlap import keys, repeats
from flow_opd.rewards.ocr import LineReader, OCRReward
from oracles import read_prompts

LENGTHS = range(1, 7)


def draw(n, *, seed=0, lengths=LENGTHS, taken=(), texts=()):
    return new_prompts(n, seed=seed, task="text", lengths=lengths, taken=set(taken), taken_texts=texts)


def length(prompt):
    return len(prompt.metadata["text"].split())


def test_the_lists_hold_plain_words_once():
    for group in (words.THINGS, words.QUALITIES, words.ACTIONS, words.TIMES, words.DAYS):
        assert len(set(group)) == len(group)
        assert all(re.fullmatch("[a-z]{2,}", word) for word in group)
    assert len(SCENES) == len(set(SCENES))
    assert {size: len(slots) for size, slots in PHRASES.items()} == {size: size for size in LENGTHS}


def test_sentences_quote_their_text_once_and_are_english():
    scenes = [f'{surface} "Bread" {place}' for surface, place in SCENES]
    sentences = scenes + [prompt.text for prompt in draw(300).prompts]
    for sentence in sentences:
        assert sentence.count('"') == 2
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", sentence), sentence
    for prompt in draw(300).prompts:
        assert quotations(prompt.text) == [prompt.metadata["text"]]
        assert re.fullmatch(r"([A-Z][a-z]+|the|before)( ([A-Z][a-z]+|the|before))*", prompt.metadata["text"])


def test_lengths_grow_in_turn():
    assert [length(prompt) for prompt in draw(14).prompts] == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2]
    assert [length(prompt) for prompt in draw(5, lengths=range(2, 4)).prompts] == [2, 3, 2, 3, 2]


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**40), n=st.integers(1, 80), first=st.integers(1, 6), more=st.integers(0, 5))
def test_sets_are_deterministic_without_duplicates_and_read_back(tmp_path_factory, seed, n, first, more):
    lengths = range(first, min(6, first + more) + 1)
    prompts = draw(n, seed=seed, lengths=lengths).prompts
    assert len(prompts) == n
    assert draw(n, seed=seed, lengths=lengths).prompts == prompts
    assert {length(prompt) for prompt in prompts} <= set(lengths)
    file = tmp_path_factory.mktemp("prompts") / "new.jsonl"
    write_prompts(file, prompts)
    assert read_prompts(file) == prompts
    assert repeats(read_lines(file)) == []


def test_texts_and_scenes_are_many():
    prompts = draw(1200, seed=4).prompts
    texts = Counter(prompt.metadata["text"] for prompt in prompts)
    assert len(texts) > 1050
    assert len({tuple(prompt.text.split(f'"{prompt.metadata["text"]}"')) for prompt in prompts}) > 250


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), other=st.integers(0, 1000))
def test_excluded_texts_never_come_in_any_scene(seed, other):
    excluded = [
        prompt.metadata["text"].upper() + "!" for prompt in draw(400, seed=other, lengths=[1, 2]).prompts
    ]
    new = {
        prompt.metadata["text"].lower()
        for prompt in draw(400, seed=seed, lengths=[1, 2], texts=excluded).prompts
    }
    assert not new & {text.lower().rstrip("!") for text in excluded}


def test_every_text_but_the_excluded_ones_can_come():
    left = {"Yarn", "Acorn", "Moon"}
    excluded = [word for word in words.THINGS if word.capitalize() not in left]
    prompts = draw(3 * len(SCENES), lengths=[1], texts=[*excluded, "nothing of ours", "zebra"]).prompts
    assert Counter(prompt.metadata["text"] for prompt in prompts) == dict.fromkeys(left, len(SCENES))


def test_excluded_sentences_never_come_but_their_texts_may():
    old = draw(len(SCENES) - 1, seed=1, lengths=[1], texts=set(words.THINGS) - {"moon"}).prompts
    taken = {key for prompt in old for key in keys(prompt)}
    (new,) = draw(1, lengths=[1], taken=taken, texts=set(words.THINGS) - {"moon"}).prompts
    assert new.metadata["text"] == "Moon"
    assert new not in old


def test_more_than_there_are_is_refused():
    there, texts = 2 * len(SCENES), set(words.THINGS) - {"moon", "yarn"}
    with refused(DataError, value=there + 1, names=[f"at most {there},"]):
        draw(there + 1, lengths=[1], texts=texts)


class Told:
    """A reader that has been told what is written."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def read(self, images):
        return self.texts


def test_the_reward_knows_right_from_wrong():
    prompts = draw(60).prompts
    texts = [prompt.metadata["text"] for prompt in prompts]
    blank = torch.zeros(len(prompts), 3, 8, 8)
    right = OCRReward(Told(texts)).score(blank, prompts)
    assert right.valid.all()
    assert right.values.tolist() == right.parts["exact"].tolist() == [1.0] * len(prompts)
    wrong = OCRReward(Told([text[1:] for text in texts])).score(blank, prompts)
    assert wrong.values.max() < 1
    assert OCRReward(Told([""] * len(texts))).score(blank, prompts).values.max() == 0


def test_the_shipped_recogniser_reads_our_texts():
    """Up to six words on a plain line, at a width of 512 pixels."""
    prompts = draw(18, seed=3).prompts
    images = torch.from_numpy(np.stack([written(prompt.metadata["text"]) for prompt in prompts]))
    scores = OCRReward(LineReader(width=512)).score(images.permute(0, 3, 1, 2).float() / 255, prompts)
    assert scores.values.mean() > 0.98
    assert scores.parts["exact"].mean() > 0.9


def written(text: str):
    font = ImageFont.load_default(40)
    picture = Image.new("RGB", (int(font.getlength(text)) + 80, 120), "white")
    ImageDraw.Draw(picture).text((40, 40), text, fill="black", font=font)
    return np.asarray(picture.resize((512, 64)))
