"""New composition prompts in GenEval's wording and metadata schema.

Source: GenEval, arXiv 2310.11513: six tags, the 80 classes of COCO under GenEval's names, ten colours, counts
from two to four.
Differs: the plurals are English ("benches", "people"; not "benchs", "persons"), scissors
and skis come in pairs, and both ways to ask for one picture count as one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from functools import partial
from itertools import combinations, permutations, product
from typing import Any

from flow_opd.prompts.pools import Drawn, Pool, draw
from flow_opd.types import Prompt

# COCO's order. GenEval renames three, whose names alone are ambiguous: mouse, remote and keyboard.
_CLASSES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop
    sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
    backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon,
    bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard,
    cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
    hair drier, toothbrush
"""
CLASSES = tuple(" ".join(name.split()) for name in _CLASSES.split(","))
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLORED = tuple(name for name in CLASSES if name != "person")  # GenEval gives people no colour
NUMBERS = {2: "two", 3: "three", 4: "four"}
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
IN_PAIRS = ("skis", "scissors")
IRREGULAR_PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "computer mouse": "computer mice",
}

Entry = dict[str, Any]
Includes = tuple[list[Entry], ...]  # the include lists that ask for one picture

_TWO = tuple(combinations(CLASSES, 2))
_TWO_COLORED = tuple(combinations(COLORED, 2))
_TWO_COLORS = tuple(permutations(COLORS, 2))
_COUNTS = tuple(product(CLASSES, NUMBERS))
_COLORS = tuple(product(COLORED, COLORS))
_POSITIONS = tuple(product(_TWO, OPPOSITES))


def new_prompts(n: int, *, seed: int, task: str, shares: Mapping[str, float], taken: Set[str]) -> Drawn:
    """Returns n new prompts with GenEval's metadata, all asking for different pictures.

    Args:
        n: how many, >= 1.
        seed: the same seed gives the same prompts.
        task: of the prompts; "{tag}" in it becomes the tag of each.
        shares: tag -> share >= 0.
        taken: keys (`overlap.keys`) of prompts that may not come.

    Raises:
        DataError: if there are fewer than n.
    """
    return draw(pools(task), shares, n, seed=seed, taken=taken)


def pools(task: str) -> dict[str, Pool]:
    """Returns tag -> all its pictures by number, each with the prompts that ask for it."""
    return {
        tag: Pool(size, partial(_prompts, task, tag, includes)) for tag, (size, includes) in _TAGS.items()
    }


def item(name: str, count: int = 1, color: str | None = None) -> Entry:
    """Returns one entry of an include list."""
    entry: Entry = {"class": name, "count": count}
    return entry if color is None else {**entry, "color": color}


def caption(include: list[Entry]) -> str:
    """Returns the sentence that asks for an include list: "a photo of a dog left of an orange bench"."""
    if "position" in include[-1]:
        relation, target = include[-1]["position"]
        return f"a photo of {_noun(include[-1])} {relation} {_noun(include[target])}"
    return "a photo of " + " and ".join(_noun(entry) for entry in include)


def plural(name: str) -> str:
    """Returns the plural of a class: "benches", "computer mice"."""
    if name in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[name]
    return name + ("es" if name.endswith(("s", "ch", "sh")) else "s")


def _noun(entry: Mapping[str, Any]) -> str:
    """Returns an entry as words: "an orange bench", "three dogs", "a pair of red skis"."""
    name, count, color = entry["class"], entry["count"], entry.get("color")
    thing = plural(name) if count > 1 and name not in IN_PAIRS else name
    thing = f"{color} {thing}" if color else thing
    if name in IN_PAIRS:
        thing = f"{'pairs' if count > 1 else 'pair'} of {thing}"
    return f"{NUMBERS[count]} {thing}" if count > 1 else f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _prompts(task: str, tag: str, includes: Callable[[int], Includes], number: int) -> tuple[Prompt, ...]:
    return tuple(_prompt(task.replace("{tag}", tag), tag, include) for include in includes(number))


def _prompt(task: str, tag: str, include: list[Entry]) -> Prompt:
    metadata: dict[str, Any] = {"tag": tag, "include": include}
    if tag == "counting":
        metadata["exclude"] = [item(include[0]["class"], include[0]["count"] + 1)]
    return Prompt(caption(include), task, metadata)


def _single_object(number: int) -> Includes:
    return ([item(CLASSES[number])],)


def _two_object(number: int) -> Includes:
    one, other = _TWO[number]
    return [item(one), item(other)], [item(other), item(one)]


def _counting(number: int) -> Includes:
    name, count = _COUNTS[number]
    return ([item(name, count)],)


def _colors(number: int) -> Includes:
    name, color = _COLORS[number]
    return ([item(name, color=color)],)


def _position(number: int) -> Includes:
    """As GenEval writes it: what is looked from comes first in the list and last in the sentence."""
    (one, other), relation = _POSITIONS[number]
    return (
        [item(other), {**item(one), "position": [relation, 0]}],
        [item(one), {**item(other), "position": [OPPOSITES[relation], 0]}],
    )


def _color_attr(number: int) -> Includes:
    things, colors = divmod(number, len(_TWO_COLORS))
    one, other = (
        item(name, color=color) for name, color in zip(_TWO_COLORED[things], _TWO_COLORS[colors], strict=True)
    )
    return [one, other], [other, one]


_TAGS: dict[str, tuple[int, Callable[[int], Includes]]] = {
    "single_object": (len(CLASSES), _single_object),
    "two_object": (len(_TWO), _two_object),
    "counting": (len(_COUNTS), _counting),
    "colors": (len(_COLORS), _colors),
    "position": (len(_POSITIONS), _position),
    "color_attr": (len(_TWO_COLORED) * len(_TWO_COLORS), _color_attr),
}
