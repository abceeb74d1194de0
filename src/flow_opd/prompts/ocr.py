"""New prompts that quote words to be drawn, for the OCR reward.

Source: the task is Flow-GRPO's visual text rendering, 'a sign that says "text"' (arXiv 2505.05470). Words and
scenes are this package's own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Set
from functools import partial
from itertools import product

from flow_opd.prompts import words
from flow_opd.prompts.jsonl import TEXT
from flow_opd.prompts.overlap import plain
from flow_opd.prompts.pools import Drawn, Pool, draw
from flow_opd.types import Prompt

Slots = tuple[tuple[str, ...], ...]

# How a text of so many words is made: one word out of each slot.
PHRASES: dict[int, Slots] = {
    1: (words.THINGS,),
    2: (words.QUALITIES, words.THINGS),
    3: (words.QUALITIES, words.THINGS, words.TIMES),
    4: (words.ACTIONS, ("the",), words.QUALITIES, words.THINGS),
    5: (words.ACTIONS, ("the",), words.QUALITIES, words.THINGS, words.TIMES),
    6: (words.ACTIONS, ("the",), words.QUALITIES, words.THINGS, ("before",), words.DAYS),
}
SCENES = (
    *product(words.OUTDOOR_SURFACES, words.OUTDOOR_PLACES),
    *product(words.INDOOR_SURFACES, words.INDOOR_PLACES),
)
SMALL_WORDS = ("the", "before")  # without a capital


def new_prompts(
    n: int,
    *,
    seed: int,
    task: str,
    lengths: Iterable[int],
    taken: Set[str],
    taken_texts: Iterable[str] = (),
) -> Drawn:
    """Returns n new prompts, each with the words to be drawn as the metadata "text".

    The lengths take turns. A text may come again in another scene, a sentence may not.

    Args:
        n: how many, >= 1.
        seed: the same seed gives the same prompts.
        task: of the prompts.
        lengths: words of the texts, out of 1 .. 6.
        taken: keys (`overlap.keys`) of prompts that may not come.
        taken_texts: texts that may not be asked for in any scene.

    Raises:
        DataError: if there are fewer than n.
    """
    barred = {tuple(plain(text).split()) for text in taken_texts}
    pools = {f"texts of length {length}": _pool(PHRASES[length], task, barred) for length in lengths}
    return draw(pools, dict.fromkeys(pools, 1.0), n, seed=seed, taken=taken)


def _pool(slots: Slots, task: str, barred: set[tuple[str, ...]]) -> Pool:
    """Returns all texts of a length in all scenes, but for the barred texts."""
    numbers = sorted(number for text in barred if (number := _number(text, slots)) is not None)
    # The k-th text that is left is number k + (how many barred ones stand before it).
    before = [number - place for place, number in enumerate(numbers)]
    left = math.prod(map(len, slots)) - len(numbers)
    return Pool(left * len(SCENES), partial(_prompts, task, slots, before))


def _prompts(task: str, slots: Slots, before: list[int], number: int) -> tuple[Prompt, ...]:
    place, scene = divmod(number, len(SCENES))
    text = _text(place + bisect_right(before, place), slots)
    surface, where = SCENES[scene]
    return (Prompt(f'{surface} "{text}" {where}', task, {TEXT: text}),)


def _text(number: int, slots: Slots) -> str:
    """Returns the text of a number, its first slot counting fastest: "Follow the Quiet River"."""
    chosen = []
    for slot in slots:
        number, place = divmod(number, len(slot))
        chosen.append(slot[place] if slot[place] in SMALL_WORDS else slot[place].capitalize())
    return " ".join(chosen)


def _number(text: tuple[str, ...], slots: Slots) -> int | None:
    """Returns the number of a text in lower case, or None if these slots cannot make it."""
    if len(text) != len(slots) or any(word not in slot for word, slot in zip(text, slots, strict=True)):
        return None
    number = 0
    for word, slot in zip(reversed(text), reversed(slots), strict=True):
        number = number * len(slot) + slot.index(word)
    return number
