"""Settings of the commands that make and check prompt files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from flow_opd.config.base import (
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Problem,
    Settings,
    refuse,
)

LONGEST_TEXT = 6  # words
TextLength = Annotated[int, Field(ge=1, le=LONGEST_TEXT)]


class _NewPromptsSettings(Settings):
    n: PositiveInt
    """Prompts to write."""
    seed: NonNegativeInt = 0
    """The same seed writes the same file."""
    out: Path
    """The jsonl file; an older one of this name is replaced."""
    exclude: tuple[Name, ...] = ()
    """Prompt files, such as a test set, whose sentences, GenEval meanings and quoted texts may not come."""

    @model_validator(mode="after")
    def _out_fits(self) -> _NewPromptsSettings:
        problems = []
        if self.out.suffix == ".txt":
            allowed = "a name that does not end in .txt, which is read as plain sentences"
            problems.append(
                Problem(
                    ("out",), "a text file cannot hold metadata", str(self.out), allowed, "call it .jsonl"
                )
            )
        if self.out.resolve() in [Path(name).resolve() for name in self.exclude]:
            allowed, fix = "a file that is not excluded", "write into another file"
            problems.append(
                Problem(
                    ("out",),
                    "the new file would replace what it is to leave out",
                    str(self.out),
                    allowed,
                    fix,
                )
            )
        refuse(problems)
        return self


class TagSharesSettings(Settings):
    """Share of each GenEval tag, relative to each other; the mixture that Flow-GRPO trained on by default."""

    position: NonNegativeFloat = 7
    """Prompts like "a photo of a dog left of a bench"."""
    counting: NonNegativeFloat = 5
    """Prompts like "a photo of three dogs"; there are only 240 of these."""
    color_attr: NonNegativeFloat = 3
    """Prompts like "a photo of a red dog and a blue bench"."""
    colors: NonNegativeFloat = 1
    """Prompts like "a photo of a red dog"."""
    two_object: NonNegativeFloat = 1
    """Prompts like "a photo of a dog and a bench"."""
    single_object: NonNegativeFloat = 0
    """Prompts like "a photo of a dog"."""

    @model_validator(mode="after")
    def _not_all_nothing(self) -> TagSharesSettings:
        if not any(self.model_dump().values()):
            fix = "give one of them a share"
            refuse([Problem((), "no tag has a share", 0.0, "a share above 0 for at least one tag", fix)])
        return self


class GenEvalPromptsSettings(_NewPromptsSettings):
    """New composition prompts with GenEval's metadata."""

    task: Name = "composition"
    """Task of the prompts; '{tag}' in it stands for the tag, so that tags can be routed and shared out."""
    shares: TagSharesSettings = TagSharesSettings()
    """How the prompts are shared out among GenEval's six tags; a tag that is used up passes its share on."""


class OCRPromptsSettings(_NewPromptsSettings):
    """New prompts that quote words to be drawn."""

    task: Name = "text"
    """Task of the prompts."""
    min_words: TextLength = 1
    """Words of the shortest text."""
    max_words: TextLength = LONGEST_TEXT
    """Words of the longest text; lengths take turns."""

    @model_validator(mode="after")
    def _some_length(self) -> OCRPromptsSettings:
        if self.min_words > self.max_words:
            allowed = f"at most max_words, {self.max_words}"
            fix = "lower min_words or raise max_words"
            what = "the shortest text is longer than the longest"
            refuse([Problem(("min_words",), what, self.min_words, allowed, fix)])
        return self


class CheckPromptsSettings(Settings):
    """Reads prompt files and looks for prompts that are there twice, or in a file of the other side too."""

    files: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Files to check: .txt or jsonl, or 'asset:NAME'."""
    against: tuple[Name, ...] = ()
    """Files that may share no prompt with these, such as test sets."""
    repeats: bool = False
    """Lets a file hold a prompt several times."""
