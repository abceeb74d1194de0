"""Which prompts a round sees: a pure function of the seed and the round, so nothing has to be saved."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flow_opd.errors import DataError
from flow_opd.types import Prompt

SHARE_RESOLUTION = 1000  # shares are rounded to thousandths


class PromptRounds:
    """Distributes prompts over rounds, mixing tasks by their shares.

    Think of one endless row of slots, `prompts_per_round` of them to a round. A repeating pattern gives
    each slot a task; the n-th slot of a task takes the n-th prompt of its list, shuffled anew for each
    epoch. A task's every prompt thus comes once before any comes again, whatever the numbers.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        prompts_per_round: int,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """Sorts the prompts by task and lays out the pattern.

        Args:
            prompts: of any tasks, in any order.
            seed: of the shuffles.
            prompts_per_round: slots of a round, >= 1.
            shares: task -> share > 0, relative to each other; None gives equal shares.

        Raises:
            DataError: if there are no prompts, or shares and tasks do not match.
        """
        assert prompts_per_round >= 1, prompts_per_round
        if not prompts:
            raise DataError(
                "no prompts to train on", value=0, allowed="at least one", fix="name a prompts file"
            )
        self.seed = seed
        self.prompts_per_round = prompts_per_round
        self.tasks = tuple(sorted({prompt.task for prompt in prompts}))
        self._prompts = tuple(prompts)
        self._rows = {
            task: [row for row, prompt in enumerate(prompts) if prompt.task == task] for task in self.tasks
        }
        self._pattern = _pattern(_whole_shares(self.tasks, shares))  # slot -> index of its task, repeating
        self._orders: dict[str, tuple[int, NDArray[np.int64]]] = {}

    def round(self, index: int) -> list[Prompt]:
        """Returns the prompts of round `index` >= 0, tasks interleaved."""
        return [self._prompts[row] for row in self.rows(index)]

    def rows(self, index: int) -> list[int]:
        """Returns where the prompts of round `index` >= 0 stand in the list that was given."""
        assert index >= 0, index
        slots = range(index * self.prompts_per_round, (index + 1) * self.prompts_per_round)
        return [self._at(slot) for slot in slots]

    def _at(self, slot: int) -> int:
        cycle, position = divmod(slot, len(self._pattern))
        which = int(self._pattern[position])
        before = cycle * int((self._pattern == which).sum()) + int((self._pattern[:position] == which).sum())
        task = self.tasks[which]
        rows = self._rows[task]
        epoch, place = divmod(before, len(rows))
        return rows[int(self._order(task, epoch)[place])]

    def _order(self, task: str, epoch: int) -> NDArray[np.int64]:
        """The shuffle of a task's prompts in an epoch; the last one is kept, as drawing it costs time."""
        kept = self._orders.get(task)
        if kept is None or kept[0] != epoch:
            word = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big")
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, word, epoch]))
            kept = self._orders[task] = (epoch, rng.permutation(len(self._rows[task])))
        return kept[1]


def _whole_shares(tasks: Sequence[str], shares: Mapping[str, float] | None) -> list[int]:
    """Slots of each task in one repetition of the pattern."""
    if shares is None:
        return [1] * len(tasks)
    if set(shares) != set(tasks) or not all(math.isfinite(share) and share > 0 for share in shares.values()):
        raise DataError(
            "task shares that do not match the prompts",
            value=dict(shares),
            allowed=f"a share above 0 for each of {', '.join(tasks)}",
            fix="give one share for each task that has prompts, and no other",
        )
    total = sum(shares.values())
    whole = [max(1, round(SHARE_RESOLUTION * shares[task] / total)) for task in tasks]
    divisor = math.gcd(*whole)
    return [share // divisor for share in whole]


def _pattern(whole: Sequence[int]) -> NDArray[np.int64]:
    """Task indices, [sum of `whole`], spread as evenly as whole slots allow (smooth weighted round robin)."""
    weights = np.array(whole)
    credit = np.zeros(len(whole), dtype=np.int64)
    pattern = np.empty(weights.sum(), dtype=np.int64)
    for slot in range(len(pattern)):
        credit += weights
        pattern[slot] = credit.argmax()
        credit[pattern[slot]] -= weights.sum()
    return pattern
