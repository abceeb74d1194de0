"""Draws prompts from numbered pools that are too large to be written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flow_opd.errors import DataError
from flow_opd.prompts.overlap import keys
from flow_opd.types import Prompt


@dataclass(frozen=True)
class Pool:
    """All prompts of one kind, by number; no two numbers hold the same prompt (`overlap.keys`)."""

    size: int
    wordings: Callable[[int], tuple[Prompt, ...]]  # 0 .. size - 1 -> one or more ways to ask for one picture


class Drawn(NamedTuple):
    """The prompts of a new set, and the pools of which nothing is left."""

    prompts: list[Prompt]
    used_up: tuple[str, ...]


def draw(
    pools: Mapping[str, Pool], shares: Mapping[str, float], n: int, *, seed: int, taken: Set[str]
) -> Drawn:
    """Returns n prompts, no two of them out of one number, the pools taking turns by their shares.

    Every stretch of the result has about the right mixture. A pool of which nothing is left passes its share
    on to the others. The result is a function of the arguments.

    Args:
        pools: name -> pool.
        shares: name -> share >= 0, relative to each other.
        n: prompts to draw, >= 1.
        seed: of the draw.
        taken: keys (`overlap.keys`) of prompts that may not come.

    Raises:
        DataError: if there are fewer than n.
    """
    streams = {
        name: _fresh(pool, n, np.random.default_rng((seed, number)), taken)
        for number, (name, pool) in enumerate(pools.items())
        if shares[name] > 0
    }
    chosen, credit = list(streams), dict.fromkeys(streams, 0.0)
    drawn: list[Prompt] = []
    while streams and len(drawn) < n:
        # Smooth weighted round robin: whoever has waited longest for its share is next.
        for name in streams:
            credit[name] += shares[name]
        name = max(streams, key=lambda one: credit[one])
        prompt = next(streams[name], None)
        if prompt is None:
            del streams[name]
            continue
        credit[name] -= sum(shares[one] for one in streams)
        drawn.append(prompt)
    if len(drawn) < n:
        raise DataError(
            "more prompts asked for than there are",
            value=n,
            allowed=f"at most {len(drawn)}, drawn from {', '.join(chosen)}",
            fix="lower n, give a share to more kinds of prompts, or exclude fewer files",
        )
    return Drawn(drawn, tuple(name for name in chosen if name not in streams))


def _fresh(pool: Pool, n: int, rng: np.random.Generator, taken: Set[str]) -> Iterator[Prompt]:
    """Yields the prompts of a pool that are not taken, in random order: n of them, or all there are."""
    # Each key that is taken stands in the way of one number at most, so these numbers are enough.
    for number in rng.choice(pool.size, min(pool.size, n + len(taken)), replace=False).tolist():
        wordings = pool.wordings(number)
        if taken.isdisjoint(key for wording in wordings for key in keys(wording)):
            yield wordings[int(rng.integers(len(wordings)))]
