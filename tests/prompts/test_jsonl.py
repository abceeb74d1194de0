"""Reading prompts from three kinds of files, and writing them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_opd.errors import DataError
from flow_opd.prompts.jsonl import quotations, read_lines, write_prompts
from flow_opd.types import Prompt
from oracles import read_prompts

WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda text: text.strip() != "")


def write(folder: Path, text: str, name: str = "p.jsonl") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def refusal(file: Path, task: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_prompts(file, task=task)
    return str(caught.value)


def test_labelled_lines_keep_their_metadata(tmp_path: Path) -> None:
    file = write(
        tmp_path, '{"prompt": "a sign", "task": "text", "text": "abc"}\n\n{"prompt": "b", "task": "q"}\n'
    )
    assert read_prompts(file, task="other") == [Prompt("a sign", "text", {"text": "abc"}), Prompt("b", "q")]


def test_geneval_metadata_take_the_task_of_the_file(tmp_path: Path) -> None:
    line = {
        "tag": "counting",
        "include": [{"class": "bench", "count": 2}],
        "exclude": [],
        "prompt": "two benches",
    }
    (prompt,) = read_prompts(write(tmp_path, json.dumps(line)), task="composition")
    assert (prompt.text, prompt.task) == ("two benches", "composition")
    assert prompt.metadata == {key: line[key] for key in ("tag", "include", "exclude")}


def test_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    file = write(tmp_path, '\ufeffa cat\r\n\n  {"not": json} \r\n', "p.txt")
    assert read_prompts(file, task="t") == [Prompt("a cat", "t"), Prompt('{"not": json}', "t")]


def test_limit_takes_the_start_but_checks_the_whole(tmp_path: Path) -> None:
    file = write(tmp_path, "a\nb\nc\n", "p.txt")
    assert [prompt.text for prompt in read_prompts(file, task="t", limit=2)] == ["a", "b"]
    with pytest.raises(DataError):
        read_prompts(write(tmp_path, '{"prompt": "a", "task": "t"}\n{'), limit=1)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"prompt": "a", "task": "t"', "{file}:2 is no JSON"),
        ('{"prompt": "a", "task": "t", "x": NaN}', "{file}:2 is no JSON (NaN is no number)"),
        ('{"prompt": "a", "prompt": "b", "task": "t"}', "{file}:2 is no JSON (a key is there twice)"),
        ("[1]", "{file}:2 is no JSON object: '[1]'"),
        ('{"text": "a", "task": "t"}', "{file}:2: wrong or missing 'prompt': None"),
        ('{"prompt": " ", "task": "t"}', "{file}:2: wrong or missing 'prompt': ' '"),
        ('{"prompt": "a"}', "{file}:2 names no task"),
        ('{"prompt": "a", "task": 3}', "{file}:2: wrong or missing 'task': 3"),
        (
            '{"prompt": "a", "task": "t", "include": ["bench"]}',
            "{file}:2: wrong value of 'include': ['bench']",
        ),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, part: str) -> None:
    file = write(tmp_path, '{"prompt": "a", "task": "t"}\n' + line + "\n")
    assert part.format(file=file) in refusal(file)


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    assert "no prompts in" in refusal(write(tmp_path, "\n \n"))
    assert "No such file" in refusal(tmp_path / "absent.jsonl")
    assert "names no task" in refusal(write(tmp_path, "a\n", "p.txt"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    assert "byte 0 is no UTF-8" in refusal(tmp_path / "b.txt", "t")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.builds(Prompt, WORDS, WORDS, st.just({"text": "x", "n": 1.5})), min_size=1))
def test_written_prompts_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[Prompt]
) -> None:
    file = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    write_prompts(file, prompts)
    assert read_prompts(file) == prompts


def test_metadata_that_cannot_be_written_leave_the_old_file(tmp_path: Path) -> None:
    file = write(tmp_path, "old")
    for metadata in ({"x": float("nan")}, {"x": object()}, {"task": "other"}):
        with pytest.raises(DataError, match="metadata of prompt 2"):
            write_prompts(file, [Prompt("a", "t"), Prompt("b", "t", metadata)])
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_lines_know_their_place(tmp_path: Path) -> None:
    file = write(tmp_path, "\na\n\nb\n", "p.txt")
    assert read_lines(file, task="t") == [(f"{file}:2", Prompt("a", "t")), (f"{file}:4", Prompt("b", "t"))]


def test_quoted_words_become_the_text_to_be_drawn(tmp_path: Path) -> None:
    """As Flow-GRPO's OCR files are read: the first quotation counts."""
    file = write(
        tmp_path,
        'A mug labeled "Campfire Brew" on a spy’s log.\na page that says “Hot Soup” and "Cold Soup"\n',
        "train.txt",
    )
    prompts = read_prompts(file, task="text", text_in_quotes=True)
    assert [prompt.metadata for prompt in prompts] == [{"text": "Campfire Brew"}, {"text": "Hot Soup"}]
    assert [prompt.metadata for prompt in read_prompts(file, task="text")] == [{}, {}]


def test_a_text_that_is_given_stays(tmp_path: Path) -> None:
    file = write(
        tmp_path, '{"prompt": "a \\"B\\"", "task": "t", "text": "C"}\n{"prompt": "a \\"B\\"", "task": "t"}'
    )
    prompts = read_prompts(file, text_in_quotes=True)
    assert [prompt.metadata["text"] for prompt in prompts] == ["C", "B"]


@pytest.mark.parametrize("line", ["a sign", 'a sign that says ""', 'a sign that says " "', 'a 12" sign'])
def test_a_line_without_quoted_words_is_refused(tmp_path: Path, line: str) -> None:
    file = write(tmp_path, f'a "B"\n\n{line}\n', "p.txt")
    with pytest.raises(DataError) as caught:
        read_prompts(file, task="t", text_in_quotes=True)
    assert f"{file}:3 quotes no text to be drawn: " in str(caught.value)
    assert "text_in_quotes off" in str(caught.value)


@given(st.text(st.characters(exclude_characters='"“”')).filter(str.strip))
def test_anything_between_quotes_is_found(text: str) -> None:
    assert quotations(f'a sign that says "{text}" in a street') == [text.strip()]
    assert quotations(f"a sign that says “{text}” in a street") == [text.strip()]
