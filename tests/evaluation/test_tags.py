"""Scores that are a mean over tags, and lines that ask for the same: what is resampled, and the coverage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from flow_opd.config.evaluate import RolesSettings
from flow_opd.evaluation.images import EvaluationSet, ImageScores
from flow_opd.evaluation.intervals import Bootstrap, Scores, paired_difference
from flow_opd.evaluation.metrics import METRICS
from flow_opd.evaluation.results import ProtocolCard
from flow_opd.evaluation.table import build_results, retained_gain
from flow_opd.types import Prompt

# GenEval's own numbers of prompts a tag, and about what SD3.5-M reaches in each.
SIZES = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
MEANS = {
    "single_object": 0.97,
    "two_object": 0.8,
    "counting": 0.5,
    "colors": 0.78,
    "position": 0.25,
    "color_attr": 0.5,
}
LIKENESS = 0.41  # share of the variance of a picture's score that belongs to its prompt


def scores(values: Sequence[float] | NDArray[np.float64], tags: Sequence[str]) -> Scores:
    return Scores.of([f"{row}" for row in range(len(tags))], [0] * len(tags), values, tags=tags)


def test_the_mean_of_tags_by_hand() -> None:
    # counting: (1 + 0 + 0 + 0) / 4 = .25; colors: (1 + 1) / 2 = 1; (.25 + 1) / 2 = .625, not 3 / 6 = .5.
    one = scores([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], ["counting"] * 4 + ["colors"] * 2)
    assert one.mean == Bootstrap().estimate(one).mean == 0.625
    assert Scores.of("abcdef", [0] * 6, one.values).mean == 0.5


def test_a_tag_that_was_not_judged_does_not_count() -> None:
    one = Scores.of("abcd", [0] * 4, [1.0, 0.0, 0.0, np.nan], [True, True, True, False], tags="xxyz")
    assert one.mean == Bootstrap().estimate(one).mean == 0.25


def test_differences_retention_and_average_use_the_same_mean() -> None:
    tags = ["counting"] * 40 + ["colors"] * 10
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, 50)

    def row(counting: float, colors: float) -> Scores:
        return scores(np.repeat([counting, colors], [40, 10]) + noise, tags)

    base, teacher, student = row(0.2, 0.4), row(0.6, 0.8), row(0.3, 0.9)
    assert Bootstrap().estimate(paired_difference(student, base)).mean == pytest.approx((0.1 + 0.5) / 2)
    kept = retained_gain(
        base, teacher, student, metric="geneval", teacher_name="t", domain="", bootstrap=Bootstrap()
    )
    assert kept.mean == pytest.approx(((0.1 + 0.5) / 2) / 0.4)
    plain = {
        domain: {metric: Scores.of([f"{i}" for i in range(50)], [0] * 50, noise + level)}
        for domain, metric, level in (
            ("text", "ocr", 0.5),
            ("quality", "deqa", 4),
            ("preference", "pickscore", 21),
        )
    }
    card = ProtocolCard(
        steps=40, dynamics="ode", guidance={}, resolution=(512, 512), prompts={}, seeds={}, metrics=METRICS
    )
    rows = {
        name: plain | {"composition": {"geneval": one}}
        for name, one in (("base", base), ("student", student))
    }
    results = build_results(
        rows,
        roles=RolesSettings(base="base", student="student"),
        protocol=card,
        wall_seconds=1,
        peak_rss_mb=1,
    )
    [average] = [one for one in results.differences if one.metric == "average"]
    assert average.mean == pytest.approx((0.1 + 0.5) / 2 / 4)
    assert average.low <= average.mean <= average.high
    assert results.rows[1].tags["geneval"]["colors"].mean == pytest.approx(0.9 + noise[40:].mean())
    assert results.rows[1].tags["geneval"]["counting"].n == 40
    assert results.to_json()["rows"][1]["tags"]["geneval"]["colors"]["mean"] > 0.8


def test_a_tag_of_few_prompts_has_the_variance_of_its_mean() -> None:
    """Of three prompts the resampled mean varies by s^2 / 3; with three draws it would be 2/3 of that."""
    one = scores([0.0, 1.0, 5.0], ["x"] * 3)
    draws = Bootstrap(resamples=20_000).draws(one)
    assert draws.var() == pytest.approx(np.var([0.0, 1.0, 5.0], ddof=1) / 3, rel=0.03)


def test_tags_of_one_prompt_share_an_interval_and_one_alone_adds_nothing() -> None:
    single = scores([0.0, 1.0, 0.0, 1.0], ["a", "b", "c", "d"])
    draws = Bootstrap(resamples=20_000).draws(single)
    assert draws.mean() == pytest.approx(0.5, abs=0.01)
    assert draws.var() == pytest.approx(np.var([0, 1, 0, 1], ddof=1) / 4, rel=0.03)
    mixed = scores([0.0, 1.0, 0.5], ["a", "a", "b"])
    assert Bootstrap(resamples=20_000).draws(mixed).std() == pytest.approx(0.25, rel=0.03)


def test_lines_of_one_prompt_are_resampled_together() -> None:
    values = np.random.default_rng(0).normal(size=200)
    once = Scores.of([f"{i}" for i in range(200)], [0] * 200, values)
    lines = [f"{i}" for i in range(800)]
    asked = [f"{i % 200}" for i in range(800)]
    repeated = Scores.of(lines, [0] * 800, np.tile(values, 4), prompts=asked)
    narrow, wide = Bootstrap().estimate(once), Bootstrap().estimate(repeated)
    assert (wide.low, wide.high) == pytest.approx((narrow.low, narrow.high))
    assert (narrow.n, wide.n) == (200, 800)


def coverage(*, as_prompts: bool, repetitions: int = 300) -> float:
    """Share of the 95 % intervals around the true score, on 553 prompts in four lines each."""
    tags = np.repeat(list(SIZES), list(SIZES.values()))
    means = np.repeat([MEANS[tag] for tag in SIZES], list(SIZES.values()))
    lines = [f"{line}" for line in range(4 * len(tags))]
    asked = np.tile([f"{prompt}" for prompt in range(len(tags))], 4).tolist()
    strength = 1 / LIKENESS - 1
    generator, bootstrap = np.random.default_rng(0), Bootstrap(resamples=500)
    truth, covered = float(np.mean(list(MEANS.values()))), 0
    for _ in range(repetitions):
        chance = generator.beta(means * strength, (1 - means) * strength)
        values = (generator.random((4, len(tags))) < chance).astype(float).ravel()
        one = Scores.of(
            lines,
            [0] * len(lines),
            values,
            prompts=asked if as_prompts else None,
            tags=np.tile(tags, 4).tolist(),
        )
        estimate = bootstrap.estimate(one)
        covered += estimate.low <= truth <= estimate.high
    return covered / repetitions


@pytest.mark.slow
def test_prompts_cover_the_truth_and_lines_do_not() -> None:
    assert 0.92 <= coverage(as_prompts=True) <= 0.98
    assert coverage(as_prompts=False) < 0.87


def test_a_geneval_prompt_is_known_by_its_metadata_and_another_by_its_text() -> None:
    def pair(first: str, second: str) -> dict[str, object]:
        return {"tag": "two_object", "include": [{"class": first, "count": 1}, {"class": second, "count": 1}]}

    prompts = (
        Prompt("a photo of a dog and a cat", "composition", pair("dog", "cat")),
        Prompt("a dog and a cat", "composition", pair("dog", "cat")),
        Prompt("a photo of a cat and a dog", "composition", pair("cat", "dog")),
        Prompt("A sign.", "text"),
        Prompt("a sign", "text"),
    )
    reported: ImageScores = {"geneval_strict": [1.0] * 10, "deqa": [3.0] * 10}
    found = EvaluationSet("composition", prompts, (0, 1)).scores_by_metric(reported, METRICS)
    asked = found["geneval"].prompts
    assert [asked.index(one) for one in asked[::2]] == [0, 0, 4, 6, 6]
    assert len(set(found["geneval"].pairs)) == 10
    assert found["geneval"].tags[::2] == ("two_object",) * 3 + ("",) * 2
    assert set(found["deqa"].tags) == {""}
    assert found["deqa"].prompts == asked
