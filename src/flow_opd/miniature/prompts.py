"""All prompts of the four domains, split into train and test."""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import permutations, product

import numpy as np

from flow_opd.errors import DataError, nearest
from flow_opd.miniature.captions import (
    COMPOSITION,
    MEDIA,
    PREFERENCE,
    RELATIONS,
    TAGS,
    TASKS,
    TEXT,
    Metadata,
    caption,
    item,
    noun,
    tagged,
)
from flow_opd.miniature.palette import BACKGROUNDS, COLORS, LETTERS, ORNAMENTS, SHAPES, WORD_LENGTH, allowed
from flow_opd.types import Prompt

SPLITS = ("train", "test")
# Too few texts to hold some out; as in GenEval they come back under other seeds.
REPEATED_TAGS = ("single_object", "counting", "colors")
TEST_SHARE = 0.3


def prompts(task: str, split: str, count: int, seed: int) -> list[Prompt]:
    """Returns `count` prompts of a domain, drawn without repetition for as long as there are new ones.

    Train and test never share a text or a meaning, but for composition's tags single_object, counting and
    colors: they have 3, 9 and 18 texts in all, so both splits use all of them, with other picture seeds.
    Composition goes through its six tags in turn.

    Raises:
        DataError: if the task or the split is unknown.
    """
    _check(task, TASKS, "task")
    _check(split, SPLITS, "split")
    rng = np.random.default_rng((seed, TASKS.index(task), SPLITS.index(split)))
    pools = [_pool(tag, split) for tag in TAGS] if task == COMPOSITION else [_pool(task, split)]
    streams: list[list[int]] = [[] for _ in pools]
    drawn: list[Prompt] = []
    while len(drawn) < count:
        which = len(drawn) % len(pools)
        if not streams[which]:
            streams[which] = rng.permutation(len(pools[which])).tolist()
        metadata = pools[which][streams[which].pop()]
        drawn.append(Prompt(caption(metadata), task, metadata))
    return drawn


@cache
def every(domain: str) -> tuple[Metadata, ...]:
    """Returns the metadata of all prompts of a tag of composition, or of another task."""
    pairs = list(permutations(SHAPES, 2))
    if domain == "single_object":
        return tuple(tagged(domain, item(shape)) for shape in SHAPES)
    if domain == "two_object":
        return tuple(tagged(domain, item(first), item(second)) for first, second in pairs)
    if domain == "counting":
        return tuple(tagged(domain, item(shape, count)) for shape, count in product(SHAPES, (2, 3, 4)))
    if domain == "colors":
        return tuple(tagged(domain, item(shape, color=color)) for shape, color in product(SHAPES, COLORS))
    if domain == "position":
        return tuple(
            tagged(domain, item(target), {**item(subject), "position": [relation, 0]})
            for (subject, target), relation in product(pairs, RELATIONS)
        )
    if domain == "color_attr":
        return tuple(
            tagged(domain, item(first, color=one), item(second, color=two))
            for (first, second), (one, two) in product(pairs, permutations(COLORS, 2))
        )
    if domain == TEXT:
        return tuple({"text": "".join(letters)} for letters in product(LETTERS, repeat=WORD_LENGTH))
    return _preference_scenes() if domain == PREFERENCE else _quality_scenes()


def _preference_scenes() -> tuple[Metadata, ...]:
    """Returns paintings and drawings: "a painting of two red circles in the desert and a sun"."""
    scenes: list[Metadata] = []
    for medium, count, color, shape, place in product(MEDIA, (1, 2, 3, 4), COLORS, SHAPES, BACKGROUNDS):
        if allowed(color, place):
            scene: Metadata = {"include": [item(shape, count, color)], "background": place, "medium": medium}
            scenes += [scene, *({**scene, "ornament": name} for name in ORNAMENTS[place])]
    return tuple(scenes)


def _quality_scenes() -> tuple[Metadata, ...]:
    """Returns plain scenes: "a blue square at night", "a red circle and a green square in the sky"."""
    scenes: list[Metadata] = []
    for place in BACKGROUNDS:
        colors = [color for color in COLORS if allowed(color, place)]
        for color, shape, count in product(colors, SHAPES, (1, 2, 3, 4)):
            scenes.append({"include": [item(shape, count, color)], "background": place})
        for (first, second), (one, two) in product(permutations(SHAPES, 2), permutations(colors, 2)):
            scenes.append({"include": [item(first, 1, one), item(second, 1, two)], "background": place})
    return tuple(scenes)


@cache
def _pool(domain: str, split: str) -> tuple[Metadata, ...]:
    """Returns the prompts of a tag or task that belong to a split; small tags belong to both.

    Split by meaning: "a circle left of a square" never trains what "a square right of a circle" tests.
    Meanings are ranked by their hash: even, and independent of the order of writing.
    """
    everything = every(domain)
    if domain in REPEATED_TAGS:
        return everything
    meanings = sorted(
        {_meaning(one) for one in everything}, key=lambda one: hashlib.sha256(one.encode()).digest()
    )
    held_out = set(meanings[: round(TEST_SHARE * len(meanings))])
    return tuple(one for one in everything if (_meaning(one) in held_out) == (split == "test"))


def _meaning(metadata: Metadata) -> str:
    """Returns a text that prompts for the same picture share, whatever the order of naming."""
    if "text" in metadata:
        return str(metadata["text"])
    include = metadata["include"]
    if "position" in include[-1]:
        relation = include[-1]["position"][0]
        names = [entry["class"] for entry in include]
        return " ".join(names if relation in ("right of", "below") else names[::-1]) + (
            " across" if relation in ("left of", "right of") else " upright"
        )
    plain = {key: value for key, value in metadata.items() if key not in ("include", "prompt")}
    return f"{sorted(noun(entry) for entry in include)} {sorted(plain.items(), key=str)}"


def _check(value: str, known: tuple[str, ...], kind: str) -> None:
    if value not in known:
        hint = nearest(value, known)
        fix = "use one of these names" + (f".{hint}" if hint else "")
        raise DataError(f"unknown {kind}", value=value, allowed=", ".join(known), fix=fix)
