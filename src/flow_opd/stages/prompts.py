"""Makes new prompt files and checks old ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flow_opd.config.locations import locate
from flow_opd.config.prompts import CheckPromptsSettings, GenEvalPromptsSettings, OCRPromptsSettings
from flow_opd.prompts import geneval, ocr
from flow_opd.prompts.jsonl import TEXT, Lines, quotations, read_lines, write_prompts
from flow_opd.prompts.overlap import keys, problems, refuse
from flow_opd.prompts.pools import Drawn

NO_TASK = "none"  # of prompts that are only compared


def write_geneval(settings: GenEvalPromptsSettings) -> Path:
    """Writes new composition prompts and returns their file."""
    drawn = geneval.new_prompts(
        settings.n,
        seed=settings.seed,
        task=settings.task,
        shares=settings.shares.model_dump(),
        taken=_keys(_read_all(settings.exclude, "exclude")),
    )
    write_prompts(settings.out, drawn.prompts)
    _tell(drawn, Counter(prompt.metadata["tag"] for prompt in drawn.prompts))
    return settings.out


def write_ocr(settings: OCRPromptsSettings) -> Path:
    """Writes new prompts that quote words to be drawn, and returns their file."""
    excluded = _read_all(settings.exclude, "exclude")
    texts = [text for _, prompt in excluded for text in quotations(prompt.text)]
    texts += [str(prompt.metadata[TEXT]) for _, prompt in excluded if TEXT in prompt.metadata]
    drawn = ocr.new_prompts(
        settings.n,
        seed=settings.seed,
        task=settings.task,
        lengths=range(settings.min_words, settings.max_words + 1),
        taken=_keys(excluded),
        taken_texts=texts,
    )
    write_prompts(settings.out, drawn.prompts)
    lengths = Counter(len(prompt.metadata[TEXT].split()) for prompt in drawn.prompts)
    _tell(drawn, Counter({f"texts of length {length}": count for length, count in lengths.items()}))
    return settings.out


def check_files(settings: CheckPromptsSettings) -> None:
    """Says what is in prompt files.

    Raises:
        DataError: with every prompt that a file holds twice or shares with a file of the other side.
    """
    files = {name: _read(name, "files") for name in settings.files}
    others = {name: _read(name, "against") for name in settings.against}
    refuse(
        message
        for name, lines in files.items()
        for message in problems(name, lines, repeated=settings.repeats, others=others)
    )
    console = Console(highlight=False, soft_wrap=True)
    for name, lines in files.items():
        once = "" if settings.repeats else ", none of them twice"
        apart = f", none of them in {' or '.join(others)}" if others else ""
        console.print(f"{name}: {len(lines)} prompts{once}{apart}", markup=False)


def _read(name: str, key: str) -> Lines:
    return read_lines(locate(name, key=key), task=NO_TASK)


def _read_all(names: Sequence[str], key: str) -> Lines:
    return [line for name in names for line in _read(name, key)]


def _keys(lines: Lines) -> set[str]:
    return {key for _, prompt in lines for key in keys(prompt)}


def _tell(drawn: Drawn, counts: Counter[str]) -> None:
    """Prints how many prompts there are of each kind, and which kinds had too few."""
    console = Console(highlight=False, soft_wrap=True)
    for kind, count in sorted(counts.items()):
        console.print(f"{kind}: {count}", markup=False)
    if drawn.used_up:
        used = ", ".join(drawn.used_up)
        console.print(f"used up, so that the others got a larger share: {used}", style="yellow", markup=False)
