"""What a command imports is left alone by the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from flow_opd.cli.common import uncollected

MADE = 50_000  # many times what sets off a collection


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """The generations that were collected since the test began."""
    seen: list[int] = []

    def note(phase: str, about: dict[str, int]) -> None:
        if phase == "start":
            seen.append(about["generation"])

    gc.callbacks.append(note)
    try:
        yield seen
    finally:
        gc.callbacks.remove(note)
        gc.unfreeze()
        gc.enable()


def test_nothing_is_collected_inside_and_all_of_it_is_set_aside(collections: list[int]) -> None:
    frozen = gc.get_freeze_count()
    with uncollected():
        kept = [[] for _ in range(MADE)]
        inside = list(collections)
    assert inside == []
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(kept)
    more = [[] for _ in range(MADE)]
    assert len(more) == MADE
    assert collections, "afterwards the collector works as ever"


def test_the_collector_comes_back_after_an_error(collections: list[int]) -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off(collections: list[int]) -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()
