"""The images of an evaluation: what the grid shows is kept while it is scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from flow_opd.evaluation.images import Album, EvaluationSet, ImageKey, ImageSampler
from flow_opd.seeding import generator
from tiny import PROMPTS, REDNESS, Tiny

SHAPES = EvaluationSet("shapes", PROMPTS, (3, 5))
SHOWN = 2


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def sampler(tiny: Tiny) -> ImageSampler:
    return ImageSampler(
        tiny.backbone,
        encoder=tiny.backbone,
        sigmas=tiny.backbone.sigmas(2),
        batch_size=3,
        seeder=lambda domain, index, seed: generator(0, "image", domain, index, seed),
    )


@contextmanager
def counted(tiny: Tiny) -> Iterator[list[int]]:
    """Yields the rows of the base's forward passes inside the context."""
    rows: list[int] = []
    handle = tiny.backbone.transformer.register_forward_pre_hook(
        lambda module, given, named: rows.append(len(named["hidden_states"])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        handle.remove()


def test_what_was_scored_is_not_drawn_again(tiny: Tiny, sampler: ImageSampler) -> None:
    album = Album(sampler, SHOWN)
    rewards = [one.reward for one in REDNESS.rewards]
    sampler.score(tiny.student, SHAPES, rewards, on_batch=partial(album.keep, "student", SHAPES))
    with counted(tiny) as rows:
        shown = album.images("student", tiny.student, SHAPES)
    assert rows == []
    again = sampler.draw(tiny.student, SHAPES, [ImageKey(0, 3), ImageKey(1, 3)])
    assert float((again[0] - again[1]).abs().max()) > 1e-2
    torch.testing.assert_close(shown, again, rtol=0, atol=1e-5)


def test_what_was_not_scored_is_drawn_once(tiny: Tiny, sampler: ImageSampler) -> None:
    album = Album(sampler, SHOWN)
    album.keep("base", SHAPES, [ImageKey(0, 3), ImageKey(3, 3)], torch.zeros(2, 3, 8, 8))
    with counted(tiny) as rows:
        shown = album.images("base", tiny.policy(None), SHAPES)
    assert rows == [1, 1], "two steps of the one image that is missing"
    assert torch.equal(shown[0], torch.zeros(3, 8, 8))
    assert float(shown[1].abs().max()) > 0
    with counted(tiny) as rows:
        assert torch.equal(album.images("base", tiny.policy(None), SHAPES), shown)
        album.images("student", tiny.student, SHAPES)
    assert rows == [2, 2], "another row has images of its own"


def test_a_set_shows_its_first_prompts_from_its_first_seed() -> None:
    assert SHAPES.first_image_keys(2) == [(0, 3), (1, 3)]
    assert SHAPES.first_image_keys(9) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert SHAPES.first_image_keys(0) == []
