"""One seed tree: every draw is a function of (seed, what it is for, where the training stands)."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *path: str | int) -> int:
    """Returns a 63-bit seed for `path` below `seed`; other paths give independent seeds."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Returns a CPU generator for `path`, e.g. generator(0, "walk", round, "noise").

    Re-seeding from the progress counter instead of carrying a state is what makes a resumed run
    draw the same noise.
    """
    return torch.Generator().manual_seed(derived_seed(seed, *path))
