"""Completion: what a shell is told, and how long a shell waits for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from calls import flow_opd


def completed(*words: str) -> list[str]:
    """Returns what bash would offer for the last of `words`."""
    environment = {
        "_FLOW_OPD_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("flow-opd", *words)),
        "COMP_CWORD": str(len(words)),
    }
    result = flow_opd(env=environment)
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["di"], ["distill"]),
        (["miniature", ""], ["build", "prompts"]),
        (["distill", "--fr"], ["--fresh"]),
        (["schema", "miniature"], ["miniature", "miniature_prompts"]),
        (["distill", "x.yaml", "--set", "ema."], ["ema.decay=", "ema.every="]),
        (["miniature", "build", "--set", "vae."], ["vae.steps=", "vae.batch_size=", "vae.learning_rate="]),
        (["distill", "x.yaml", "--set", "ema.decay=0."], []),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_what_is_offered(words: list[str], offered: list[str]) -> None:
    assert completed(*words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_this_command(shell: str) -> None:
    """As a process: whether the shell is asked for is decided while typer is imported."""
    result = subprocess.run(
        [sys.executable, "-m", "flow_opd", "--show-completion", shell],
        capture_output=True,
        text=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"_FLOW_OPD_COMPLETE=complete_{shell}" in result.stdout


def test_only_the_first_page_of_help_speaks_of_completion() -> None:
    pages = [flow_opd(*words, "--help") for words in ([], ["distill"])]
    assert [page.stdout.count("completion") for page in pages] == [2 + 2, 0]  # two options, two sentences
