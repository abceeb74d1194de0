"""New composition prompts in GenEval's wording and metadata schema.

Source: GenEval, arXiv 2310.11513: six tags, the 80 classes of COCO under GenEval's names, ten colours, counts from
two to four. The share of each tag is Flow-GRPO's, arXiv 2505.05470, section 5.1.
Differs: the plurals are English ("benches", "people"; GenEval's script writes "benchs", "persons"), and scissors and
skis come in pairs; both wordings of one picture count as one prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, permutations, product
from typing import Any

from flow_opd.prompts.pools import Drawn, Pool, draw
from flow_opd.types import Prompt

# COCO's order. GenEval renames three, whose names alone are ambiguous: mouse, remote and keyboard.
CLASSES = tuple(
    name.strip()
    for name in """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush
    """.split(",")
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLORED = tuple(name for name in CLASSES if name != "person")  # GenEval gives people no colour
NUMBERS = {2: "two", 3: "three", 4: "four"}
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PAIRS = ("skis", "scissors")
IRREGULAR_PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "computer mouse": "computer mice",
}

Entry = dict[str, Any]


def new_prompts(
    n: int, *, seed: int, task: str, shares: Mapping[str, float], taken: set[str]
) -> Drawn:
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
    """Returns tag -> all its prompts: one number per picture, with each way to ask for it."""
    pairs, colored_pairs = list(combinations(CLASSES, 2)), list(combinations(COLORED, 2))
    counts = list(product(CLASSES, NUMBERS))
    colors = list(product(COLORED, COLORS))
    color_pairs = list(permutations(COLORS, 2))
    positions = list(product(pairs, OPPOSITES))

    def prompt(tag: str, *include: Entry) -> Prompt:
        return _prompt(task, tag, *include)

    def two(number: int) -> tuple[Prompt, ...]:
        return tuple(prompt("two_object", *map(item, order)) for order in _both(*pairs[number]))

    def position(number: int) -> tuple[Prompt, ...]:
        (one, other), relation = positions[number]
        ways = ((one, relation, other), (other, OPPOSITES[relation], one))
        return tuple(
            prompt("position", item(target), {**item(subject), "position": [way, 0]})
            for subject, way, target in ways
        )

    def color_attr(number: int) -> tuple[Prompt, ...]:
        (one, other), (first, second) = (
            colored_pairs[number // len(color_pairs)],
            color_pairs[number % len(color_pairs)],
        )
        entries = item(one, color=first), item(other, color=second)
        return tuple(prompt("color_attr", *order) for order in _both(*entries))

    return {
        "single_object": Pool(len(CLASSES), lambda number: (prompt("single_object", item(CLASSES[number])),)),
        "two_object": Pool(len(pairs), two),
        "counting": Pool(len(counts), lambda number: (prompt("counting", item(*counts[number])),)),
        "colors": Pool(
            len(colors),
            lambda number: (prompt("colors", item(colors[number][0], color=colors[number][1])),),
        ),
        "position": Pool(len(positions), position),
        "color_attr": Pool(len(colored_pairs) * len(color_pairs), color_attr),
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


def _prompt(task: str, tag: str, *include: Entry) -> Prompt:
    metadata: dict[str, Any] = {"tag": tag, "include": list(include)}
    if tag == "counting":
        metadata["exclude"] = [item(include[0]["class"], include[0]["count"] + 1)]
    return Prompt(caption(metadata["include"]), task.replace("{tag}", tag), metadata)


def _noun(entry: Mapping[str, Any]) -> str:
    """Returns an entry as words: "an orange bench", "three dogs", "a pair of red skis"."""
    name, count, color = entry["class"], entry["count"], entry.get("color")
    several = count > 1 and name not in PAIRS
    thing = plural(name) if several else name
    thing = f"{color} {thing}" if color else thing
    if name in PAIRS:
        thing = f"{'pairs' if count > 1 else 'pair'} of {thing}"
    return f"{NUMBERS[count]} {thing}" if count > 1 else f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _both[T](one: T, other: T) -> tuple[tuple[T, T], tuple[T, T]]:
    return (one, other), (other, one)
