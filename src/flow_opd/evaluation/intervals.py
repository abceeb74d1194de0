"""Means of per-image scores with bootstrap intervals, alone and in pairs.

The unit that is resampled is the prompt: all its seeds and all lines that ask for the same go together,
because two images of one prompt are not two independent pieces of evidence. A score that is a mean over tags
is resampled within each tag. Rows judged on the same prompts meet the same resamples, so every difference is
paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flow_opd.errors import DataError
from flow_opd.evaluation.results import Estimate

Pair = tuple[str, int]
CACHED_STRATA = 16  # a stratum of 500 prompts and 4000 resamples holds 16 MB


@dataclass(frozen=True)
class Scores:
    """One metric of one policy: a score per image, and which images could be judged at all."""

    pairs: tuple[Pair, ...]  # N, (line of the prompts file, seed), each pair once
    values: NDArray[np.float64]  # [N]; any value, NaN included, where not valid
    valid: NDArray[np.bool_]  # [N]; False = the metric does not apply to this image
    prompts: tuple[str, ...]  # N, what is resampled: lines that ask for the same have one prompt
    tags: tuple[str, ...]  # N, groups of prompts of equal weight in the mean; one for all = the plain mean

    @staticmethod
    def of(
        lines: Sequence[str],
        seeds: Sequence[int],
        values: ArrayLike,
        valid: ArrayLike | None = None,
        *,
        prompts: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
    ) -> Scores:
        """Returns checked scores of N images.

        Args:
            lines: id of the line of each image, N; the same id for all seeds of a line.
            seeds: seed of each image, N.
            values: [N].
            valid: [N] bool; left out, all are valid.
            prompts: prompt of each image, N; left out, each line is a prompt of its own.
            tags: tag of each image, N; left out, the mean is that of all images.

        Raises:
            DataError: if lengths differ, a pair occurs twice, or a valid score is not finite.
        """
        numbers = np.asarray(values, dtype=np.float64)
        mask = np.ones(numbers.shape, dtype=np.bool_) if valid is None else np.asarray(valid, dtype=np.bool_)
        prompts = [str(line) for line in lines] if prompts is None else prompts
        tags = [""] * len(lines) if tags is None else tags
        named = (len(lines), len(seeds), len(prompts), len(tags))
        sizes = (*named, *numbers.shape, *mask.shape)
        if len(set(sizes)) != 1 or len(sizes) != 6:
            raise DataError(
                "lines, seeds, prompts, tags, scores and mask of different lengths",
                value=(*named, numbers.shape, mask.shape),
                allowed="one entry per image in each",
                fix="pass flat arrays in the order of the images",
            )
        pairs = tuple((str(line), int(seed)) for line, seed in zip(lines, seeds, strict=True))
        if len(set(pairs)) != len(pairs):
            twice = next(pair for pair in pairs if pairs.count(pair) > 1)
            raise DataError(
                "an image scored twice",
                value=twice,
                allowed="each (line, seed) once",
                fix="give each line an id of its own, or another seed",
            )
        broken = np.flatnonzero(mask & ~np.isfinite(numbers))
        if broken.size:
            raise DataError(
                f"score of line {pairs[broken[0]][0]!r}, seed {pairs[broken[0]][1]}",
                value=float(numbers[broken[0]]),
                allowed="a finite number, or an image marked as not valid",
                fix="look at the reward that gave it; a score is never replaced by a stand-in",
            )
        return Scores(pairs, numbers, mask, tuple(prompts), tuple(tags))

    @property
    def n(self) -> int:
        """Number of images that were judged."""
        return int(self.valid.sum())

    @property
    def judged(self) -> list[str]:
        """The prompt of each judged image."""
        return [prompt for prompt, valid in zip(self.prompts, self.valid, strict=True) if valid]

    @property
    def mean(self) -> float:
        """Mean over the tags of the mean over a tag's judged images; with one tag that of all images."""
        return float(np.mean([one.values[one.valid].mean() for _, one in self.by_tag() if one.n]))

    def by_tag(self) -> Iterator[tuple[str, Scores]]:
        """Yields each tag with the scores of its images, in the order in which the tags first occur."""
        names = np.array(self.tags, dtype=object)
        for tag in dict.fromkeys(self.tags):
            yield tag, self._rows(np.flatnonzero(names == tag))

    def _rows(self, rows: NDArray[np.intp]) -> Scores:
        """The scores at `rows`, in that order."""
        return Scores(
            tuple(self.pairs[row] for row in rows),
            self.values[rows],
            self.valid[rows],
            tuple(self.prompts[row] for row in rows),
            tuple(self.tags[row] for row in rows),
        )


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
                f"paired scores that differ in {len(stray)} (prompt, seed) pairs, for one",
                value=min(stray),
                allowed="the same prompts and seeds in both rows",
                fix="evaluate both policies with one prompts file and one list of seeds",
            )
    aligned = []
    for one in scores:
        where = {pair: index for index, pair in enumerate(one.pairs)}
        aligned.append(one._rows(np.array([where[pair] for pair in first.pairs], dtype=np.intp)))
    valid = np.logical_and.reduce([one.valid for one in aligned])
    return [replace(one, valid=valid) for one in aligned]


def paired_difference(scores: Scores, minus: Scores) -> Scores:
    """Returns scores - minus per image, valid where both are.

    Raises:
        DataError: if the two are not about the same (prompt, seed) pairs.
    """
    a, b = jointly(scores, minus)
    values = np.where(a.valid, np.where(a.valid, a.values, 0.0) - np.where(b.valid, b.values, 0.0), np.nan)
    return replace(a, values=values)


class Bootstrap:
    """Seeded percentile bootstrap over prompts, within each tag where the scores have tags.

    One seed, one stratum and one list of prompts always give the same resamples. Of P prompts P - 1 are drawn
    with replacement: so the variance of a resampled mean is that of a mean of P also where P is small, as
    within a tag. Scores that are all equal get an interval of no width: the sample holds no evidence of any
    spread.

    Source: McCarthy and Snowden 1985, "The bootstrap and finite population sampling", for P - 1 of P.
    """

    def __init__(self, seed: int = 0, resamples: int = 4000, level: float = 0.95) -> None:
        self.seed = seed
        self.resamples = resamples
        self.level = level
        self._weights: dict[str, NDArray[np.float64]] = {}

    def draws(self, scores: Scores, stratum: str = "") -> NDArray[np.float64]:
        """Returns the mean of `scores` (`Scores.mean`) in each resample, [resamples].

        Args:
            stratum: name of the domain; resamples of different strata are independent.

        Raises:
            DataError: if fewer than two prompts were judged.
        """
        groups = _groups(scores)
        found = sum(len(group.prompts) for group in groups)
        if found < 2:
            raise DataError(
                "too few judged prompts for an interval",
                value=found,
                allowed="at least 2, better 100",
                fix="evaluate more prompts, or leave this metric out of the domain",
            )
        means = [self._means(group, stratum) for group in groups]
        draws: NDArray[np.float64] = np.average(means, axis=0, weights=[group.tags for group in groups])
        return draws

    def _means(self, group: _Group, stratum: str) -> NDArray[np.float64]:
        """The mean of a group in each resample, [resamples]; of a single prompt always its own."""
        if len(group.prompts) == 1:
            return np.full(self.resamples, group.sums[0] / group.counts[0])
        weights = self._resampled_counts(group.prompts, f"{stratum} {group.name}")
        means: NDArray[np.float64] = (weights @ group.sums) / (weights @ group.counts)
        return means

    def estimate(self, scores: Scores, stratum: str = "") -> Estimate:
        """Returns mean and interval of `scores`. Raises as `draws` does."""
        draws = self.draws(scores, stratum)
        return self.around(scores.mean, draws, scores.n, len(scores.pairs) - scores.n)

    def around(self, mean: float, draws: NDArray[np.float64], n: int, missing: int = 0) -> Estimate:
        """Returns `mean` with the central `level` of `draws` as its interval."""
        low, high = np.quantile(draws, self.tails)
        return Estimate(mean=mean, low=float(low), high=float(high), n=n, missing=missing)

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
            picks = generator.integers(size, size=(self.resamples, size - 1))
            picks += np.arange(self.resamples)[:, None] * size
            counts = np.bincount(picks.ravel(), minlength=self.resamples * size)
            if len(self._weights) == CACHED_STRATA:
                self._weights.pop(next(iter(self._weights)))
            self._weights[key] = counts.reshape(self.resamples, size).astype(np.float64)
        return self._weights[key]


class _Group(NamedTuple):
    """Prompts that are resampled among each other."""

    name: str
    tags: int  # tags whose means it stands for
    prompts: tuple[str, ...]  # P, sorted
    sums: NDArray[np.float64]  # [P], of the judged scores of a prompt
    counts: NDArray[np.float64]  # [P], judged images of a prompt


def _groups(scores: Scores) -> list[_Group]:
    """The tags that were judged; those of a single prompt, which show no spread alone, make one group.

    Joining them adds the distance of their means to the interval, which is then rather too wide.
    """
    groups = [_of_one_tag(tag, one) for tag, one in scores.by_tag() if one.n]
    lonely = [group for group in groups if len(group.prompts) == 1]
    if len(lonely) < 2:
        return groups
    joined = _Group(
        "single prompts",
        len(lonely),
        tuple(f"{group.name} {group.prompts[0]}" for group in lonely),
        np.array([group.sums[0] / group.counts[0] for group in lonely]),
        np.ones(len(lonely)),
    )
    return [*(group for group in groups if len(group.prompts) > 1), joined]


def _of_one_tag(tag: str, scores: Scores) -> _Group:
    judged = scores.judged
    prompts = tuple(sorted(set(judged)))
    place = {prompt: index for index, prompt in enumerate(prompts)}
    index = np.array([place[prompt] for prompt in judged], dtype=np.intp)
    sums = np.bincount(index, weights=scores.values[scores.valid], minlength=len(prompts)).astype(np.float64)
    counts = np.bincount(index, minlength=len(prompts)).astype(np.float64)
    return _Group(tag, 1, prompts, sums, counts)
