"""benchmarks/card.py, which is meant for a card, whole and at a tiny size on the processor."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from card import SHARES, main, rate_of, run_section, tiny
from card_sections import SECTIONS, Bench, NotHereError, Reading, measured, updates

from forks import fork


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return tiny(torch.device("cpu"), tmp_path_factory.mktemp("card"), seconds=100.0)


def run(*words: str) -> None:
    sys.argv = ["card.py", *words]
    main()


@pytest.mark.slow
def test_every_section_has_its_readings(tmp_path: Path) -> None:
    """Compiling takes minutes on a processor and is left out."""
    out = tmp_path / "card.json"
    words = ("--tiny", "--device", "cpu", "--skip", "compile", "--out", str(out), "--budget", "1200")
    done = fork(run, *words, told=tmp_path / "told")
    assert done.ended() == 0, done.err
    result = json.loads(out.read_text())
    assert result["machine"]["device"] == "cpu"
    sections = result["sections"]
    ended = {name: section["ended"] for name, section in sections.items()}
    assert ended.pop("waiting").startswith("not here: ")
    assert set(ended.values()) == {""}
    counts = {"updates": 4, "guidance": 2, "switching": 3, "waiting": 0, "demo": 1}
    assert {name: len(section["readings"]) for name, section in sections.items()} == counts
    for name in sections:
        assert f"\n{name}\n" in done.out


@pytest.mark.slow
def test_twice_the_rows_are_twice_the_work(bench: Bench) -> None:
    few, many = (bench.settings(rows) for rows in (4, 8))
    parts = bench.parts(few)
    readings = [measured(bench, settings, parts) for settings in (few, many)]
    assert [each["trajectories"] for each in readings] == [4, 8]
    assert readings[1]["tflops"] == pytest.approx(2 * readings[0]["tflops"])
    assert readings[0]["planned_gib"] < readings[1]["planned_gib"] < 2 * readings[0]["planned_gib"]


@pytest.mark.slow
def test_checkpointing_needs_less_memory_and_counts_no_other_work(bench: Bench) -> None:
    readings = list(updates(bench))
    plain, checkpointed = (
        next(each for each in readings if each["micro_batch"] == 4 and each["checkpointing"] is on)
        for on in (False, True)
    )
    assert checkpointed["planned_gib"] < plain["planned_gib"]
    assert checkpointed["tflops"] == plain["tflops"], "what is computed again is no progress"


def test_a_section_ends_with_its_time_and_says_so() -> None:
    def slow() -> Iterator[Reading]:
        for index in range(100):
            time.sleep(0.05)
            yield {"index": index}

    result = run_section(slow(), seconds=0.12)
    assert 1 < len(result["readings"]) < 10
    assert "left out the rest" in result["ended"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [(NotHereError("no card"), "not here: no card"), (ValueError("odd"), "failed: ValueError: odd")],
)
def test_a_section_that_cannot_go_on_leaves_its_readings(fault: Exception, told: str) -> None:
    def broken() -> Iterator[Reading]:
        yield {"index": 0}
        raise fault

    result = run_section(broken(), seconds=100.0)
    assert result["readings"] == [{"index": 0}]
    assert result["ended"] == told


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", None),
    ],
)
def test_cards_are_known_by_the_name_that_pytorch_gives_them(name: str, tflops: float | None) -> None:
    assert rate_of(name) == (None if tflops is None else tflops * 1e12)


def test_the_sections_share_the_time() -> None:
    assert SHARES.keys() == SECTIONS.keys()
    assert sum(SHARES.values()) == pytest.approx(1.0)
