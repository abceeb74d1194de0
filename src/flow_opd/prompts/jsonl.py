"""Reads and writes prompts: a JSON object a line, GenEval metadata, or plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from flow_opd.errors import DataError
from flow_opd.files import write_text
from flow_opd.types import Prompt

PROMPT, TASK = "prompt", "task"
TEXT = "text"  # what the OCR reward looks for in the picture
GENEVAL_LISTS = ("include", "exclude")
_QUOTATION = re.compile(r'"([^"]*)"|“([^”]*)”')

Lines = list[tuple[str, Prompt]]  # where a prompt stands ("file:12"), and the prompt


def read_lines(path: str | Path, *, task: str | None = None, text_in_quotes: bool = False) -> Lines:
    """Returns the prompts of a file, in its order, each with its place: "file:line".

    A `.txt` file has a prompt a line. In every other file a line is a JSON object with the key "prompt"
    and, unless `task` is given, the key "task"; all other keys become the prompt's metadata, so that a
    GenEval line ("tag", "include", "exclude", "prompt") keeps what its reward needs.

    Args:
        path: the file, UTF-8.
        task: the task of prompts that do not name theirs.
        text_in_quotes: gives each prompt without a "text" its first quotation as "text", as Flow-GRPO's OCR
            reward (arXiv 2505.05470) does with `dataset/ocr/*.txt`.

    Raises:
        DataError: for an absent or empty file, or a malformed line, with its number.
    """
    file = Path(path)
    text = _read_text(file)
    read = _plain_prompt if file.suffix == ".txt" else _prompt
    lines: Lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{file}:{number}"
            prompt = read(line, task, place)
            lines.append((place, _with_text(prompt, place) if text_in_quotes else prompt))
    if not lines:
        raise DataError(
            f"no prompts in {file}",
            value=f"{len(text)} characters",
            allowed="at least one prompt, one a line",
            fix="write prompts into the file or name another one",
        )
    return lines


def quotations(sentence: str) -> list[str]:
    """Returns what stands between double quotes, straight or curly, without the empty ones."""
    return [text for pair in _QUOTATION.findall(sentence) if (text := (pair[0] or pair[1]).strip())]


def write_prompts(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """Writes prompts as jsonl, atomically; `read_lines` returns them equal.

    Raises:
        DataError: if the metadata of a prompt hold what JSON cannot, or use the keys "prompt" or "task".
    """
    lines = []
    for number, prompt in enumerate(prompts, start=1):
        taken = {PROMPT, TASK} & set(prompt.metadata)
        if taken:
            _refuse(
                f"metadata of prompt {number} use a reserved key",
                sorted(taken),
                "other keys",
                "rename the key",
            )
        entry = {PROMPT: prompt.text, TASK: prompt.task, **prompt.metadata}
        try:
            lines.append(json.dumps(entry, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            _refuse(
                f"metadata of prompt {number} do not fit into JSON ({error})",
                prompt.text,
                "words, finite numbers, lists and mappings",
                "remove the value",
            )
    write_text(Path(path), "".join(line + "\n" for line in lines))


def _prompt(line: str, task: str | None, place: str) -> Prompt:
    try:
        entry = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = str(error).split(":")[0]
        _refuse(f"{place} is no JSON ({reason})", _shown(line), "one JSON object a line", "correct this line")
    if not isinstance(entry, dict):
        _refuse(
            f"{place} is no JSON object", _shown(line), 'an object like {"prompt": ...}', "correct this line"
        )
    text = _word(entry.pop(PROMPT, None), PROMPT, place, "the words to draw")
    own = _word(entry.pop(TASK), TASK, place, "the name of a task") if TASK in entry else task
    if own is None:
        fix = "add the task, or give one for the whole file"
        _refuse(f"{place} names no task", _shown(line), "a key 'task', or one task for the file", fix)
    for key in GENEVAL_LISTS:
        items = entry.get(key, [])
        if not isinstance(items, list) or not all(
            isinstance(item, dict) and "class" in item for item in items
        ):
            _refuse(
                f"{place}: wrong value of '{key}'",
                items,
                "a list of objects, each with a 'class'",
                "follow GenEval's metadata format",
            )
    return Prompt(text, own, entry)


def _plain_prompt(line: str, task: str | None, place: str) -> Prompt:
    if task is None:
        fix = "give the task of this file, or turn it into jsonl with tasks"
        _refuse(f"{place} names no task", _shown(line), "one task for the whole file", fix)
    return Prompt(line.strip(), task)


def _with_text(prompt: Prompt, place: str) -> Prompt:
    if TEXT in prompt.metadata:
        return prompt
    found = quotations(prompt.text)
    if not found:
        _refuse(
            f"{place} quotes no text to be drawn",
            _shown(prompt.text),
            'a prompt with words in double quotes, like: a sign that says "OPEN"',
            "quote the words, or switch text_in_quotes off for this file",
        )
    return replace(prompt, metadata={**prompt.metadata, TEXT: found[0]})


def _word(value: Any, key: str, place: str, meaning: str) -> str:
    if not isinstance(value, str) or not value.strip():
        _refuse(
            f"{place}: wrong or missing '{key}'",
            value,
            f"{meaning}, as a non-empty text",
            "correct this line",
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is there twice")
    return result


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"byte {error.start} is no UTF-8"
        raise DataError(
            f"a prompts file that cannot be read ({reason})",
            value=str(file),
            allowed="a UTF-8 text or jsonl file",
            fix="correct the path or the file",
        ) from None


def _refuse(what: str, value: object, allowed: str, fix: str) -> NoReturn:
    raise DataError(what, value=value, allowed=allowed, fix=fix) from None


def _shown(line: str, limit: int = 80) -> str:
    return line if len(line) <= limit else line[: limit - 3] + "..."
