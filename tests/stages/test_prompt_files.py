"""Prompt files from outside: the commands that make and check them, and the checks that a run asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from errors import ANY, assert_refused, refused
from flow_opd.cli import app
from flow_opd.config.common import PromptsSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.keys import describe
from flow_opd.config.file.reader import from_values
from flow_opd.config.prompts import CheckPromptsSettings, GenEvalPromptsSettings, OCRPromptsSettings
from flow_opd.errors import DataError
from flow_opd.processes import ALONE
from flow_opd.runs.identity import prompts_digest
from flow_opd.runs.prompts import prompts_of
from flow_opd.runs.score_cache import ScoreCache
from oracles import read_prompts

GENEVAL_LINE = {
    "tag": "two_object",
    "include": [{"class": "bench", "count": 1}, {"class": "sports ball", "count": 1}],
    "prompt": "a photo of a bench and a sports ball",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prompts(*words: object) -> Result:
    return CliRunner().invoke(app, ["prompts", *map(str, words)])


def refusal(*words: object) -> str:
    before = sorted(Path().rglob("*"))
    result = prompts(*words)
    assert result.exit_code == 2, result.output
    assert sorted(Path().rglob("*")) == before
    assert_refused(result.stderr)
    return result.stderr


def test_new_composition_prompts(tmp_path: Path) -> None:
    Path("test.jsonl").write_text(json.dumps(GENEVAL_LINE))
    made = prompts(
        "geneval",
        "--n",
        50,
        "--seed",
        3,
        "--exclude",
        "test.jsonl",
        "--share",
        "two_object=30",
        "--out",
        "a.jsonl",
    )
    assert made.exit_code == 0, made.output
    assert "two_object: " in made.stdout
    assert "done  a.jsonl" in made.stdout
    written = read_prompts("a.jsonl")
    assert len(written) == 50
    assert {prompt.task for prompt in written} == {"composition"}
    assert sum(prompt.metadata["tag"] == "two_object" for prompt in written) > 25
    again = ["geneval", "--n", 50, "--seed", 3, "--exclude", "test.jsonl", "--share", "two_object=30"]
    assert prompts(*again, "--task", "objects").exit_code == 0
    elsewhere = read_prompts("runs/prompts/geneval.jsonl")
    assert [prompt.text for prompt in elsewhere] == [prompt.text for prompt in written]
    assert {prompt.task for prompt in elsewhere} == {"objects"}
    assert prompts(*again, "--seed", 4).exit_code == 0
    assert read_prompts("runs/prompts/geneval.jsonl")[:10] != written[:10]
    assert prompts("check", "a.jsonl", "--against", "test.jsonl").exit_code == 0


def test_a_set_that_excludes_another_shares_nothing_with_it() -> None:
    """All 240 counting prompts, in two halves."""
    only = [
        word for tag in ("position", "color_attr", "colors", "two_object") for word in ("--share", f"{tag}=0")
    ]
    assert prompts("geneval", "--n", 120, *only, "--out", "a.jsonl").exit_code == 0
    assert prompts("geneval", "--n", 120, *only, "--out", "b.jsonl", "--exclude", "a.jsonl").exit_code == 0
    assert prompts("check", "a.jsonl", "b.jsonl").exit_code == 0
    assert prompts("check", "b.jsonl", "--against", "a.jsonl").exit_code == 0
    message = refusal("geneval", "--n", 121, *only, "--out", "c.jsonl", "--exclude", "a.jsonl")
    assert_refused(message, value=121, names=["120"])


def test_a_used_up_tag_is_told() -> None:
    made = prompts("geneval", "--n", 800, "--share", "counting=100", "--out", "a.jsonl")
    assert "counting: 240" in made.stdout
    assert "used up, so that the others got a larger share: counting" in made.stdout


def test_new_text_prompts() -> None:
    Path("test.txt").write_text("a cup that says “Moon”\n")
    words = ["ocr", "--n", 700, "--max-words", 1, "--exclude", "test.txt"]
    made = prompts(*words)
    assert made.exit_code == 0, made.output
    assert "texts of length 1: 700" in made.stdout
    written = read_prompts("runs/prompts/ocr.jsonl")
    assert {prompt.task for prompt in written} == {"text"}
    assert "Moon" not in {prompt.metadata["text"] for prompt in written}
    assert prompts("check", "runs/prompts/ocr.jsonl", "--against", "test.txt").exit_code == 0
    assert prompts(*words, "--seed", 1, "--task", "signs").exit_code == 0
    other = read_prompts("runs/prompts/ocr.jsonl")
    assert {prompt.task for prompt in other} == {"signs"}
    assert other[0].text != written[0].text


@pytest.mark.parametrize(
    ("words", "value", "name"),
    [
        (["geneval", "--n", "0"], 0, "'n'"),
        (["geneval", "--n", "5", "--share", "countng=2"], ANY, "'counting'"),
        (["geneval", "--n", "5", "--share", "counting"], None, "'shares.counting'"),
        (["geneval", "--n", "5", "--share", "counting=-1"], -1, "'shares.counting'"),
        (["geneval", "--n", "5", "--exclude", "tset.jsonl"], "tset.jsonl", "'test.jsonl'"),
        (["geneval", "--n", "5", "--out", "new.txt"], "new.txt", ".jsonl"),
        (["geneval", "--n", "5", "--out", "./test.jsonl", "--exclude", "test.jsonl"], ANY, "test.jsonl"),
        (["ocr", "--n", "5", "--max-words", "7"], 7, "'max_words'"),
        (["ocr", "--n", "5", "--min-words", "3", "--max-words", "2"], ANY, "min_words"),
        (["check", "absent.jsonl"], "absent.jsonl", "broken.jsonl"),
        (["check", "test.jsonl", "--against", "broken.jsonl"], ANY, "broken.jsonl:1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_and_write_nothing(words: list[str], value: object, name: str) -> None:
    Path("test.jsonl").write_text(json.dumps(GENEVAL_LINE))
    Path("broken.jsonl").write_text("{")
    assert_refused(refusal(*words), value=value, names=[name])


def test_without_any_share_nothing_is_made() -> None:
    none = [
        word
        for tag in ("position", "counting", "color_attr", "colors", "two_object")
        for word in ("--share", f"{tag}=0")
    ]
    assert_refused(refusal("geneval", "--n", 5, *none), names=["share"])


def test_check_names_lines_of_both_sides() -> None:
    other = {**GENEVAL_LINE, "include": GENEVAL_LINE["include"][::-1], "prompt": "a ball, a bench"}
    Path("train.jsonl").write_text(
        f"{json.dumps({'prompt': 'a cat'})}\n{json.dumps(other)}\n{json.dumps({'prompt': 'A cat'})}\n"
    )
    Path("test.jsonl").write_text(json.dumps(GENEVAL_LINE))
    message = refusal("check", "train.jsonl", "--against", "test.jsonl")
    assert "train.jsonl:3 'A cat' = train.jsonl:1 'a cat'" in message
    assert "train.jsonl:2 'a ball, a bench' = test.jsonl:1 'a photo of a bench and a sports ball'" in message
    assert "repeat" not in refusal("check", "train.jsonl", "--against", "test.jsonl", "--repeats")
    fine = prompts("check", "train.jsonl", "--repeats")
    assert (fine.exit_code, fine.stdout) == (0, "train.jsonl: 3 prompts\n")


def test_the_miniature_shares_what_it_says_it_shares() -> None:
    """Text, preference and quality share nothing; composition repeats its three smallest tags."""
    for name in ("text", "preference", "quality"):
        train, test = (f"asset:prompts/{split}/{name}.jsonl" for split in ("train", "test"))
        assert prompts("check", train, "--against", test, "--repeats").exit_code == 0
    message = refusal("check", "asset:prompts/train/text.jsonl")
    assert "lines of asset:prompts/train/text.jsonl that repeat an earlier line: 100" in message
    assert "holds too" in refusal(
        "check",
        "asset:prompts/train/composition.jsonl",
        "--against",
        "asset:prompts/test/composition.jsonl",
        "--repeats",
    )


def test_a_run_may_ask_for_the_checks() -> None:
    Path("train.txt").write_text("a cat\na dog\nA cat!\na cow\n")
    Path("test.txt").write_text("the sun\na cow.\n")

    def load(**settings: object) -> int:
        return len(prompts_of([PromptsSettings(path="train.txt", task="t", **settings)]))

    assert load() == 4
    with refused(DataError, value=1, names=["train.txt"]):
        load(unique=True)
    with refused(DataError, value=1, names=["train.txt", "test.txt"]) as caught:
        load(disjoint_from=("test.txt",))
    assert "train.txt:4 'a cow' = test.txt:2 'a cow.'" in str(caught.value)
    # Only what is used counts.
    assert load(limit=2, unique=True, disjoint_from=("test.txt",)) == 2


def test_a_run_may_read_the_text_in_quotes() -> None:
    Path("ocr.txt").write_text('A mug that reads "Hot Tea"\n')
    (prompt,) = prompts_of([PromptsSettings(path="ocr.txt", task="text", text_in_quotes=True)])
    assert prompt.metadata == {"text": "Hot Tea"}


def test_a_training_knows_its_prompts_by_their_content() -> None:
    """Where they lie and what was checked of them makes no other training; other prompts do."""
    for name in ("p.txt", "q.txt"):
        Path(name).write_text('A mug that reads "Hot Tea"\nA sign "Exit"\n')

    def identity(path: str = "p.txt", **settings: object) -> str:
        return prompts_digest(prompts_of([PromptsSettings(path=path, task="t", **settings)]))  # type: ignore[arg-type]

    assert identity() == identity("q.txt") == identity(unique=True) == identity(disjoint_from=())
    assert len({identity(), identity(text_in_quotes=True), identity(limit=1)}) == 3


def test_a_check_does_not_make_another_table() -> None:
    def key(**settings: object) -> str:
        values = {
            "run": {"out": "x"},
            "base": {"path": "asset:base", "max_sequence_length": 0},
            "rows": {"base": {}},
            "domains": {"text": {"path": "asset:prompts/test/text.jsonl", **settings}},
            "rewards": [{"name": "ocr"}],
        }
        settings = from_values(values, EvaluateSettings)
        return ScoreCache(Path("scores"), settings, {"base": None}, resume=True, processes=ALONE).key(
            "base", "text"
        )

    assert key() == key(unique=True) == key(disjoint_from=["train.txt"])
    assert len({key(), key(text_in_quotes=True), key(limit=1)}) == 3


@pytest.mark.parametrize("model", [GenEvalPromptsSettings, OCRPromptsSettings, CheckPromptsSettings])
def test_every_key_has_help(model: type) -> None:
    assert [key.key for key in describe(model) if len(key.help) < 5] == []
