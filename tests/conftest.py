"""Fixtures that several folders share; what they are made of stands in tiny.py."""

from __future__ import annotations

import pytest
import torch

from tiny import Tiny

torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Tiny:
    """A fresh tiny SD3 base with student, teachers and anchor."""
    return Tiny()
