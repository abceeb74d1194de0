"""When two prompts are the same prompt: duplicates within a file, leaks between files."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flow_opd.errors import DataError, explain
from flow_opd.prompts.jsonl import GENEVAL_LISTS, Lines
from flow_opd.types import Prompt

SHOWN = 10  # matches that a message lists
_APOSTROPHES = re.compile(r"['’`]")
_BETWEEN_WORDS = re.compile(r"[\W_]+")
# Each relation as (axis, whether the subject comes first on it), so that both ways of saying it are one.
_AXES = {"left of": ("x", True), "right of": ("x", False), "above": ("y", True), "below": ("y", False)}


class Match(NamedTuple):
    """Two lines that hold the same prompt."""

    place: str
    text: str
    other_place: str
    other_text: str


def keys(prompt: Prompt) -> tuple[str, ...]:
    """Returns what a prompt is compared by: two prompts are the same if they share a key.

    One key is the sentence without case, punctuation and spacing. A GenEval prompt (one with a "tag") has a
    second one, the picture that it asks for: "a dog and a cat" asks for what "a cat and a dog" does, and "a
    dog left of a cat" for what "a cat right of a dog" does.
    """
    sentence = "sentence " + plain(prompt.text)
    if "tag" not in prompt.metadata or "include" not in prompt.metadata:
        return (sentence,)
    return (sentence, "meaning " + _meaning(prompt.metadata))


def identity(prompt: Prompt) -> str:
    """Returns what makes two lines one prompt in an interval: GenEval's metadata, else the sentence.

    The order of naming counts here: "a dog and a cat" and "a cat and a dog" are drawn differently, so they
    are two prompts.
    """
    if "tag" not in prompt.metadata:
        return plain(prompt.text)
    schema = {key: prompt.metadata.get(key) for key in ("tag", *GENEVAL_LISTS)}
    return json.dumps(schema, sort_keys=True)


def plain(text: str) -> str:
    """Returns a text in lower case without punctuation, its words one space apart."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A prompt of signs alone would be nothing without them.
    return _BETWEEN_WORDS.sub(" ", _APOSTROPHES.sub("", folded)).strip() or folded.strip()


def repeats(lines: Lines) -> list[Match]:
    """Returns every line that says again what an earlier line says, with the first such line."""
    first: dict[str, tuple[str, Prompt]] = {}
    matches = []
    for place, prompt in lines:
        own = keys(prompt)
        earlier = next((first[key] for key in own if key in first), None)
        if earlier is not None:
            matches.append(Match(place, prompt.text, earlier[0], earlier[1].text))
        for key in own:
            first.setdefault(key, (place, prompt))
    return matches


def leaks(lines: Lines, others: Lines) -> list[Match]:
    """Returns every line that says what one of the other lines says, with the first such line."""
    there: dict[str, tuple[str, Prompt]] = {}
    for place, prompt in others:
        for key in keys(prompt):
            there.setdefault(key, (place, prompt))
    matches = []
    for place, prompt in lines:
        found = next((there[key] for key in keys(prompt) if key in there), None)
        if found is not None:
            matches.append(Match(place, prompt.text, found[0], found[1].text))
    return matches


def problems(
    name: str, lines: Lines, *, repeated: bool, others: Mapping[str, Lines] | None = None
) -> list[str]:
    """Returns a message for the repeated prompts of a file, and one for its leaks into each other file.

    Args:
        name: what the messages call the file.
        lines: its prompts.
        repeated: whether a prompt may come several times.
        others: name -> prompts of the files that may share none with it.
    """
    again = [] if repeated else repeats(lines)
    fix = "remove these lines, or allow them: --repeats, or 'unique: false' in a configuration"
    messages = [_message(f"lines of {name} that repeat an earlier line", again, fix)] if again else []
    for other, theirs in (others or {}).items():
        shared = leaks(lines, theirs)
        if shared:
            fix = (
                "remove these lines from one of the files, or write new ones: flow-opd prompts ... --exclude"
            )
            messages.append(_message(f"prompts of {name} that {other} holds too", shared, fix))
    return messages


def refuse(messages: Iterable[str]) -> None:
    """Raises DataError with all messages; does nothing if there are none."""
    told = "\n".join(messages)
    if told:
        raise DataError(told)


def _message(what: str, matches: Sequence[Match], fix: str) -> str:
    summary = explain(
        what,
        value=len(matches),
        allowed="none; case, punctuation, spacing and, in GenEval metadata, the order of naming do not count",
        fix=fix,
    )
    listed = [f"  {one.place} {one.text!r} = {one.other_place} {one.other_text!r}" for one in matches[:SHOWN]]
    rest = len(matches) - len(listed)
    return "\n".join([summary, *listed, *([f"  and {rest} more"] if rest else [])])


def _meaning(metadata: Mapping[str, Any]) -> str:
    """Returns the things, relations and limits of GenEval metadata as one text, in one order.

    What breaks the schema is kept as it is written: judging that is up to the reward.
    """
    include = metadata["include"]
    things = [_entry(entry) for entry in include]
    relations = [
        _relation(things[index], entry.get("position"), things) for index, entry in enumerate(include)
    ]
    limits = sorted(_entry(entry) for entry in metadata.get("exclude", ()))
    return f"{sorted(things)} {sorted(filter(None, relations))} {limits}"


def _entry(entry: Mapping[str, Any]) -> str:
    return str([(key, entry[key]) for key in sorted(entry) if key != "position"])


def _relation(subject: str, position: Any, things: Sequence[str]) -> str:
    if position is None:
        return ""
    try:
        relation, index = position
        (axis, first), target = _AXES[relation], things[index]
    except (TypeError, ValueError, KeyError, IndexError):
        return f"{subject} {position}"
    return f"{axis} {subject} {target}" if first else f"{axis} {target} {subject}"
