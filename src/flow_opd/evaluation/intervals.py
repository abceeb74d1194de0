"""Means of per-image scores with bootstrap intervals, alone and in pairs.

The unit that is resampled is the prompt: all seeds of a prompt go together, because two images of one
prompt are not two independent pieces of evidence. Rows judged on the same prompts meet the same
resamples, so every difference is paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flow_opd.errors import DataError, explain

Pair = tuple[str, int]
CACHED_STRATA = 8  # a stratum of 500 prompts and 4000 resamples holds 16 MB


@dataclass(frozen=True)
class Scores:
    """One metric of one policy: a score per image, and which images could be judged at all."""

    pairs: tuple[Pair, ...]  # N, (prompt id, seed), each pair once
    values: NDArray[np.float64]  # [N]; any value, NaN included, where not valid
    valid: NDArray[np.bool_]  # [N]; False = the metric does not apply to this image

    @staticmethod
    def of(
        prompts: Sequence[str], seeds: Sequence[int], values: ArrayLike, valid: ArrayLike | None = None
    ) -> Scores:
        """Returns checked scores of N images.

        Args:
            prompts: id of the prompt of each image, N; the same id for all seeds of a prompt.
            seeds: seed of each image, N.
            values: [N].
            valid: [N] bool; left out, all are valid.

        Raises:
            DataError: if lengths differ, a pair occurs twice, or a valid score is not finite.
        """
        numbers = np.asarray(values, dtype=np.float64)
        mask = np.ones(numbers.shape, dtype=np.bool_) if valid is None else np.asarray(valid, dtype=np.bool_)
        sizes = (len(prompts), len(seeds), *numbers.shape, *mask.shape)
        if len(set(sizes)) != 1 or len(sizes) != 4:
            raise DataError(
                explain(
                    "prompts, seeds, scores and mask of different lengths",
                    value=(len(prompts), len(seeds), numbers.shape, mask.shape),
                    allowed="one entry per image in each",
                    fix="pass flat arrays in the order of the images",
                )
            )
        pairs = tuple((str(prompt), int(seed)) for prompt, seed in zip(prompts, seeds, strict=True))
        if len(set(pairs)) != len(pairs):
            twice = next(pair for pair in pairs if pairs.count(pair) > 1)
            raise DataError(
                explain(
                    "an image scored twice",
                    value=twice,
                    allowed="each (prompt, seed) once",
                    fix="give each prompt an id of its own, or another seed",
                )
            )
        broken = np.flatnonzero(mask & ~np.isfinite(numbers))
        if broken.size:
            raise DataError(
                explain(
                    f"score of prompt {pairs[broken[0]][0]!r}, seed {pairs[broken[0]][1]}",
                    value=float(numbers[broken[0]]),
                    allowed="a finite number, or an image marked as not valid",
                    fix="look at the reward that gave it; a score is never replaced by a stand-in",
                )
            )
        return Scores(pairs, numbers, mask)

    @property
    def n(self) -> int:
        """Number of images that were judged."""
        return int(self.valid.sum())


@dataclass(frozen=True)
class Cell:
    """A mean with its interval and how many images stand behind it."""

    mean: float
    low: float
    high: float
    n: int  # images judged
    missing: int = 0  # images that could not be judged


def jointly(*scores: Scores) -> list[Scores]:
    """Returns the same scores in the order of the first, all with the mask of what all could judge.

    Raises:
        DataError: if they are not about the same (prompt, seed) pairs.
    """
    first = scores[0]
    for other in scores[1:]:
        stray = set(first.pairs) ^ set(other.pairs)
        if stray:
            raise DataError(
                explain(
                    f"paired scores that differ in {len(stray)} (prompt, seed) pairs, for one",
                    value=min(stray),
                    allowed="the same prompts and seeds in both rows",
                    fix="evaluate both policies with one prompts file and one list of seeds",
                )
            )
    aligned = []
    for one in scores:
        where = {pair: index for index, pair in enumerate(one.pairs)}
        order = np.array([where[pair] for pair in first.pairs], dtype=np.intp)
        aligned.append(Scores(first.pairs, one.values[order], one.valid[order]))
    valid = np.logical_and.reduce([one.valid for one in aligned])
    return [replace(one, valid=valid) for one in aligned]


def paired_difference(scores: Scores, minus: Scores) -> Scores:
    """Returns scores - minus per image, valid where both are.

    Raises:
        DataError: if the two are not about the same (prompt, seed) pairs.
    """
    a, b = jointly(scores, minus)
    values = np.where(a.valid, np.where(a.valid, a.values, 0.0) - np.where(b.valid, b.values, 0.0), np.nan)
    return Scores(a.pairs, values, a.valid)


class Bootstrap:
    """Seeded percentile bootstrap over prompts.

    One seed, one stratum and one list of prompts always give the same resamples. Scores that are all
    equal get an interval of no width: the sample holds no evidence of any spread.
    """

    def __init__(self, seed: int = 0, resamples: int = 4000, level: float = 0.95) -> None:
        self.seed = seed
        self.resamples = resamples
        self.level = level
        self._weights: dict[str, NDArray[np.float64]] = {}

    def draws(self, scores: Scores, stratum: str = "") -> NDArray[np.float64]:
        """Returns the mean of `scores` in each resample, [resamples].

        Args:
            stratum: name of the domain; resamples of different strata are independent.

        Raises:
            DataError: if fewer than two prompts were judged.
        """
        sums, counts, prompts = _per_prompt(scores)
        weights = self._resampled_counts(prompts, stratum)
        means: NDArray[np.float64] = (weights @ sums) / (weights @ counts)
        return means

    def cell(self, scores: Scores, stratum: str = "") -> Cell:
        """Returns mean and interval of `scores`. Raises as `draws` does."""
        draws = self.draws(scores, stratum)
        return self.around(
            float(scores.values[scores.valid].mean()), draws, scores.n, len(scores.pairs) - scores.n
        )

    def difference(self, scores: Scores, minus: Scores, stratum: str = "") -> Cell:
        """Returns mean and interval of scores - minus. Raises as `draws` and `jointly` do."""
        return self.cell(paired_difference(scores, minus), stratum)

    def around(self, mean: float, draws: NDArray[np.float64], n: int, missing: int = 0) -> Cell:
        """Returns `mean` with the central `level` of `draws` as its interval."""
        low, high = np.quantile(draws, self.tails)
        return Cell(mean, float(low), float(high), n, missing)

    @property
    def tails(self) -> tuple[float, float]:
        """The two quantiles that bound the interval, (0.025, 0.975) for 95 %."""
        return (1 - self.level) / 2, (1 + self.level) / 2

    def _resampled_counts(self, prompts: tuple[str, ...], stratum: str) -> NDArray[np.float64]:
        """How often each prompt is drawn in each resample, [resamples, P]."""
        key = hashlib.sha256("\n".join((stratum, *prompts)).encode()).hexdigest()
        if key not in self._weights:
            generator = np.random.default_rng([self.seed, int(key[:16], 16)])
            size = len(prompts)
            picks = generator.integers(size, size=(self.resamples, size))
            picks += np.arange(self.resamples)[:, None] * size
            counts = np.bincount(picks.ravel(), minlength=self.resamples * size)
            if len(self._weights) == CACHED_STRATA:
                self._weights.pop(next(iter(self._weights)))
            self._weights[key] = counts.reshape(self.resamples, size).astype(np.float64)
        return self._weights[key]


def _per_prompt(scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    """Sum [P] and number [P] of judged scores per judged prompt, and the prompt ids, sorted."""
    judged = [prompt for (prompt, _), valid in zip(scores.pairs, scores.valid, strict=True) if valid]
    prompts = tuple(sorted(set(judged)))
    if len(prompts) < 2:
        raise DataError(
            explain(
                "too few judged prompts for an interval",
                value=len(prompts),
                allowed="at least 2, better 100",
                fix="evaluate more prompts, or leave this metric out of the domain",
            )
        )
    place = {prompt: index for index, prompt in enumerate(prompts)}
    index = np.array([place[prompt] for prompt in judged], dtype=np.intp)
    sums = np.bincount(index, weights=scores.values[scores.valid], minlength=len(prompts)).astype(np.float64)
    counts = np.bincount(index, minlength=len(prompts)).astype(np.float64)
    return sums, counts, prompts
