"""Fixtures that several folders share; what they are made of stands in tiny.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from calls import process_as_it_was
from tiny import Tiny

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def one_test_leaves_the_next_alone() -> Iterator[None]:
    """Commands called in this process leave it as they found it."""
    with process_as_it_was():
        yield


@pytest.fixture
def tiny() -> Tiny:
    """A fresh tiny SD3 base with student, teachers and anchor."""
    return Tiny()
