"""Truth and labels of the quality model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flow_opd.miniature.judged import FAULTS, GHOST, UNFINISHED, judged_pictures
from flow_opd.miniature.quality import QualityBatches, QualityLoss, new_quality_net, severity, soft_levels
from flow_opd.rewards.deqa import expected_level


@given(st.floats(1, 5))
def test_soft_labels_have_the_level_as_their_mean(level):
    soft = soft_levels(torch.tensor([level]))
    assert soft.sum().item() == pytest.approx(1, abs=1e-5)
    assert (soft > 0).sum() <= 2
    assert expected_level(soft.clamp(min=1e-30).log()).item() == pytest.approx(level, abs=1e-4)


def test_severity_rises_with_strength():
    strength = np.linspace(0.05, 1, 20, dtype=np.float32)
    for index, name in enumerate(FAULTS):
        bad = severity(np.full(20, index), strength)
        if name in ("clean", "blank"):
            assert set(bad.tolist()) == {0.0 if name == "clean" else 1.0}
        else:
            assert (np.diff(bad) > 0).all()
            assert 0 < bad[0] < bad[-1] == pytest.approx(0.6 if name == UNFINISHED else 1)


@pytest.fixture(scope="module")
def judged():
    return judged_pictures(5, "train", 60)


def test_batches_are_drawn_by_round(judged):
    source = QualityBatches(judged, 16, seed=3)
    first, again = (next(iter(source.round(4)))[0] for _ in range(2))
    other = next(iter(source.round(5)))[0]
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.level, again.level)
    assert not torch.equal(first.pixels, other.pixels)
    assert first.pixels.shape == (16, 3, 32, 32)
    assert first.pixels.abs().max() <= 1
    assert first.level.min() >= 1
    assert first.level.max() <= 5


def test_without_a_vae_there_are_no_flow_faults(judged):
    assert not np.isin(judged.fault, [FAULTS.index(UNFINISHED), FAULTS.index(GHOST)]).any()
    assert len(judged.rebuilt) == 0


def test_the_loss_is_a_sum_over_pictures(judged):
    batch = next(iter(QualityBatches(judged, 8, seed=3).round(0)))[0]
    objective = QualityLoss(new_quality_net(0))
    whole = objective(batch)
    halves = [
        objective(type(batch)(batch.pixels[rows], batch.level[rows])) for rows in (slice(0, 3), slice(3, 8))
    ]
    assert whole.count == 8 == sum(half.count for half in halves)
    assert whole.total.item() == pytest.approx(sum(half.total.item() for half in halves), rel=1e-5)
