"""Plain English for a scene: what is asked for (metadata), how it reads, and how it may be misread."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from numpy.random import Generator

from flow_opd.miniature.palette import BACKGROUNDS, COLORS, LETTERS, ORNAMENTS, PLACES, SHAPES

COMPOSITION, TEXT, PREFERENCE, QUALITY = TASKS = ("composition", "text", "preference", "quality")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
MEDIA = ("painting", "drawing")

Metadata = dict[str, Any]

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def words(caption: str) -> list[str]:
    """Returns the word tokens of a caption: a quoted word counts letter by letter, each quote mark once."""
    tokens: list[str] = []
    for index, part in enumerate(caption.split('"')):
        tokens += ['"'] if index else []
        tokens += list(part) if index % 2 else re.findall(r"[a-z]+", part)
    return tokens


def an(phrase: str) -> str:
    """Returns the phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def noun(item: Mapping[str, Any]) -> str:
    """Returns one entry of an include list as words: "an orange circle", "three red squares"."""
    name = f"{item['color']} {item['class']}" if "color" in item else str(item["class"])
    return an(name) if item["count"] == 1 else f"{NUMBERS[item['count']]} {name}s"


def caption(metadata: Mapping[str, Any]) -> str:
    """Returns the sentence for `metadata`: GenEval's phrasing where it has a tag, else a scene or a sign."""
    if "text" in metadata:
        return f'a sign that says "{metadata["text"]}"'
    include = metadata["include"]
    if "position" in include[-1]:
        relation, target = include[-1]["position"]
        sentence = f"{noun(include[-1])} {relation} {noun(include[target])}"
    else:
        sentence = " and ".join(noun(item) for item in include)
    if "tag" in metadata:
        return f"a photo of {sentence}"
    if "medium" in metadata:
        sentence = f"a {metadata['medium']} of {sentence}"
    sentence = f"{sentence} {PLACES[metadata['background']]}"
    return f"{sentence} and {an(metadata['ornament'])}" if "ornament" in metadata else sentence


def item(shape: str, count: int = 1, color: str | None = None) -> dict[str, Any]:
    """Returns one entry of an include list."""
    entry: dict[str, Any] = {"class": shape, "count": count}
    return entry if color is None else {**entry, "color": color}


def tagged(tag: str, *include: dict[str, Any]) -> Metadata:
    """Returns GenEval metadata for `include`; counting also excludes one object more."""
    metadata: Metadata = {"tag": tag, "include": list(include)}
    if tag == "counting":
        metadata["exclude"] = [{"class": include[0]["class"], "count": include[0]["count"] + 1}]
    return metadata


def misread(metadata: Mapping[str, Any], rng: Generator) -> Metadata:
    """Returns metadata with one fact changed, so that a picture of the original no longer fits it.

    The fact is one of those that the sentence names: letters of a word, a count, a colour, a shape, a swapped
    position, a place, an ornament.
    """
    wrong: Metadata = copy.deepcopy(dict(metadata))
    if "text" in wrong:
        letters = list(wrong["text"])
        for place in rng.permutation(len(letters))[: 1 + rng.integers(len(letters))]:
            letters[place] = _other(LETTERS, letters[place], rng)
        wrong["text"] = "".join(letters)
        return wrong
    include = wrong["include"]
    chosen = include[int(rng.integers(len(include)))]
    fact = _facts(wrong)[int(rng.integers(len(_facts(wrong))))]
    if fact == "position":
        relation, target = include[-1]["position"]
        include[-1]["position"] = [_OPPOSITE[relation], target]
    elif fact == "color":
        chosen["color"] = _other(tuple(COLORS), chosen["color"], rng)
    elif fact == "count":
        lowest = 2 if "tag" in wrong else 1
        chosen["count"] = int(_other(tuple(range(lowest, 5)), chosen["count"], rng))
    elif fact == "class":
        present = {entry["class"] for entry in include}
        absent = [shape for shape in SHAPES if shape not in present]
        chosen["class"] = absent[int(rng.integers(len(absent)))]
    elif fact == "background":
        places = [name for name in BACKGROUNDS if wrong.get("ornament") in (None, *ORNAMENTS[name])]
        wrong["background"] = _other(tuple(places), wrong["background"], rng) if len(places) > 1 else "sky"
    else:
        wrong["ornament"] = _other(ORNAMENTS[wrong["background"]], wrong["ornament"], rng)
    if "exclude" in wrong:
        wrong["exclude"] = [{"class": chosen["class"], "count": chosen["count"] + 1}]
    return wrong


def _facts(metadata: Mapping[str, Any]) -> list[str]:
    """Returns which facts of a scene its sentence names and a picture can contradict."""
    include = metadata["include"]
    if metadata.get("tag") in ("single_object", "two_object"):
        return ["class"]
    if metadata.get("tag") == "counting":
        return ["count"]
    if "position" in include[-1]:
        return ["position"]
    facts = ["color"]
    if "background" in metadata:
        facts.append("background")
        facts += ["count"] if len(include) == 1 else []
        facts += ["ornament"] if "ornament" in metadata else []
    return facts


def _other(values: Any, value: Any, rng: Generator) -> Any:
    """Returns one of `values` that is not `value`."""
    others = [candidate for candidate in values if candidate != value]
    return others[int(rng.integers(len(others)))]
