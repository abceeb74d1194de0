"""The command line from outside: help, mistakes, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from calls import flow_opd
from errors import assert_refused
from flow_opd.cli import app
from flow_opd.cli.common import READER_GONE, user_errors
from flow_opd.errors import RewardError

COMMANDS = [
    ["miniature"],
    ["miniature", "build"],
    ["miniature", "prompts"],
    ["prompts"],
    ["prompts", "geneval"],
    ["prompts", "ocr"],
    ["prompts", "check"],
    ["teacher"],
    ["merge"],
    ["sft"],
    ["distill"],
    ["evaluate"],
    ["generate"],
    ["demo"],
    ["report"],
    ["export"],
    ["card"],
    ["publish"],
    ["schema"],
]
LEAVES = [command for command in COMMANDS if command not in (["miniature"], ["prompts"])]
# These have no configuration: all their settings are options.
BY_OPTIONS = [leaf for leaf in LEAVES if leaf[0] in ("prompts", "report", "card", "publish", "schema")]
MERGE = """\
run: {out: runs/merged}
base: {path: asset:base, max_sequence_length: 0}
adapters:
  - {name: a, adapter: a}
  - {name: b, adapter: b}
"""


def test_help_lists_every_command() -> None:
    result = flow_opd("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert f" {command[0]} " in result.stdout


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_help_of_each_command_has_an_example(command: list[str]) -> None:
    result = flow_opd(*command, "--help")
    assert result.returncode == 0
    assert f"Example: flow-opd {' '.join(command)}" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from flow_opd.cli import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'pydantic', 'cv2', 'yaml'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [leaf for leaf in LEAVES if leaf not in BY_OPTIONS], ids=" ".join)
def test_keys_of_each_command_are_listed(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--keys"])
    assert result.exit_code == 0
    assert ("base.path" if command == ["export"] else "run.seed") in result.stdout


def test_reading_a_configuration_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "merge.yaml").write_text(MERGE)
    code = (
        "import sys; from flow_opd.config.file.reader import read;"
        "from flow_opd.config.merge import MergeSettings;"
        f"read({str(tmp_path / 'merge.yaml')!r}, MergeSettings); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flow_opd", "demo", "--check"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == b""
    assert process.wait() == READER_GONE


def test_check_prints_the_resolved_settings(tmp_path: Path) -> None:
    (tmp_path / "merge.yaml").write_text(MERGE)
    result = flow_opd(
        "merge",
        "merge.yaml",
        "--set",
        "method={name: svd, rank: 8}",
        "--out",
        "2026",
        "--check",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "out: '2026'" in result.stdout
    assert "rank: 8" in result.stdout
    assert not (tmp_path / "2026").exists()


@pytest.fixture
def two_files(tmp_path: Path) -> Iterator[Path]:
    """A folder with a good and a bad configuration, in which no mistake may leave anything."""
    (tmp_path / "good.yaml").write_text(MERGE)
    (tmp_path / "bad.yaml").write_text(MERGE.replace("base:", "bsae:"))
    yield tmp_path
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bad.yaml", "good.yaml"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["merge", "bad.yaml"], ["'bsae'", "bad.yaml:2", "'base'"]),
        (["merge", "good.yaml", "--set", "run.sed=1"], ["'sed'", "--set run.sed", "'seed'"]),
        (["merge", "absent.yaml"], ["'absent.yaml'", "bad.yaml, good.yaml"]),
        (["demo", "gone.yaml"], ["'gone.yaml'", "bad.yaml, good.yaml"]),
        (["generate", "a cat", "--seed", "-1"], ["'run.seed'", ": -1."]),
        (["schema", "distil"], ["'distil'", "'distill'"]),
        (["export", "nowhere", "--out", "x"], ["'RUN'", "'nowhere'"]),
        (["export", "nowhere", "--format", "peeft"], ["'format'", "'peeft'", "'peft'"]),
        (["card", "nowhere"], ["nowhere/config.yaml"]),
        (["publish", "nowhere", "--repo", "just-a-name"], ["'just-a-name'", "'owner/name'"]),
        (["publish", "nowhere", "--repo", "owner/name"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_end_with_code_2_and_four_parts(two_files: Path, words: list[str], names: list[str]) -> None:
    result = flow_opd(*words, cwd=two_files)
    assert (result.returncode, result.stdout) == (2, "")
    assert_refused(result.stderr, names=names)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["distil"], ["'distil'", "'distill'"]),
        (["merge", "good.yaml", "--sett", "x=1"], ["--sett", "--set"]),
        (["merge"], ["CONFIG"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_words_that_are_no_command_end_with_code_2_and_the_nearest(
    two_files: Path, words: list[str], names: list[str]
) -> None:
    result = flow_opd(*words, cwd=two_files)
    assert (result.returncode, result.stdout) == (2, "")
    for name in names:
        assert name in result.stderr


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)


@pytest.mark.parametrize(
    ("cause", "code", "part"),
    [
        (PermissionError(13, "Permission denied", "/locked/run"), 2, "Permission denied): '/locked/run'"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (RewardError("no [ocr] engine"), 2, "no [ocr] engine"),
        (interrupt, 130, "goes on from its newest checkpoint with: flow-opd distill 'my config.yaml'\n"),
        (SystemExit(0), 0, ""),
    ],
)
def test_what_ends_a_stage_early(
    cause: BaseException | Callable[[], None], code: int, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
    stage = typer.Typer()

    @stage.command()
    def end() -> None:
        with user_errors():
            if isinstance(cause, BaseException):
                raise cause
            cause()

    monkeypatch.setattr(sys, "argv", ["flow-opd", "distill", "my config.yaml", "--fresh"])
    result = CliRunner().invoke(stage, [], catch_exceptions=False)
    assert result.exit_code == code
    assert part in result.stderr


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="x"), user_errors():
        raise KeyError("x")
