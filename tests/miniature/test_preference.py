"""Truth and loss of the preference model."""

import math

import numpy as np
import pytest
import torch

from flow_opd.miniature.judged import DIFFERENCES, FAULTS, judged_pictures
from flow_opd.miniature.preference import (
    LOGIT_SCALE,
    PULL,
    STRANGE,
    TYPICAL_SCORE,
    PreferenceBatches,
    PreferenceLoss,
    appeal,
    new_clip,
    pair_accuracy,
    trained_parameters,
)
from flow_opd.miniature.vocabulary import build_tokenizer, vocabulary


@pytest.fixture(scope="module")
def judged():
    return judged_pictures(5, "train", 80)


def test_one_difference_leaves_the_rest_alone(judged):
    truth = appeal(judged)
    for index, name in enumerate(DIFFERENCES):
        rows = judged.differs == index
        assert rows.any()
        assert (np.ptp(truth[rows], axis=1) > 0).any()
        # Styles differ a little where facts do: another scene may have another ornament.
        if name in ("damage", "style"):
            assert (
                np.ptp(judged.wrong[rows][(judged.fault[rows] != FAULTS.index("blank")).all(1)], 1).max() == 0
            )
        if name in ("fact", "style"):
            assert np.ptp(judged.strength[rows], axis=1).max() == 0


def test_appeal_falls_with_faults_and_rises_with_style(judged):
    truth, clean = appeal(judged), judged.fault == FAULTS.index("clean")
    for index in np.flatnonzero(judged.differs == DIFFERENCES.index("style"))[:10]:
        liked = judged.style[index] @ np.asarray([0.8, 0.6, 0.5, 0.5])
        same = clean[index] & (judged.wrong[index] == 0)
        assert np.allclose(truth[index][same], liked[same], atol=1e-5)
    assert truth[clean & (judged.wrong == 0)].mean() > truth[clean & (judged.wrong == 1)].mean() + 1
    assert truth[clean & (judged.wrong == 0)].mean() > truth[~clean & (judged.wrong == 0)].mean() + 0.4


def test_the_same_seed_draws_the_same_and_splits_share_no_picture(judged):
    again = judged_pictures(5, "train", 80)
    assert np.array_equal(judged.pictures, again.pictures)
    assert np.array_equal(appeal(judged), appeal(again))
    assert not np.array_equal(judged.pictures, judged_pictures(6, "train", 80).pictures)
    test = judged_pictures(5, "test", 80)
    seen = {picture.tobytes() for row in judged.pictures for picture in row}
    assert not seen & {picture.tobytes() for row in test.pictures for picture in row}


def test_pairs_save_and_load(judged, tmp_path):
    judged.save(tmp_path)
    back = type(judged).load(tmp_path)
    assert np.array_equal(back.captions, judged.captions)
    assert np.array_equal(back.pictures, judged.pictures)


def test_pair_accuracy_by_hand():
    truth = np.asarray([[0.0, 1.0, 1.1], [3.0, 0.0, 0.5]], np.float32)
    # Clear pairs: 0-1 and 0-2 of the first row, 0-1 and 0-2 of the second.
    scores = np.asarray([[1.0, 2.0, 0.0], [9.0, 5.0, 1.0]], np.float32)
    assert pair_accuracy(scores, truth) == (3 / 4, 4)


def cross_entropy(first, second, share):
    log_p = torch.log_softmax(torch.stack([first, second]), 0)
    return -(share * log_p[0] + (1 - share) * log_p[1]).item()


def test_loss_by_hand(judged):
    tokenizer = build_tokenizer(vocabulary())
    model = new_clip(tokenizer, 0)
    batch = next(iter(PreferenceBatches(judged, tokenizer, 8, seed=1).round(0)))[0]
    assert batch.pixels.shape == (2, 4, 3, 32, 32)
    assert not torch.equal(*batch.tokens["input_ids"])
    output = PreferenceLoss(model)(batch)
    assert output.count == 2
    expected = 0.0
    for row in range(2):
        tokens = {name: value[row : row + 1] for name, value in batch.tokens.items()}
        scores = model(pixel_values=batch.pixels.flatten(0, 1), **tokens).logits_per_text[0].view(2, 4)
        own, strange, asked, other = scores[row], scores[1 - row], batch.appeal[row], batch.looks[1 - row]
        pairs = [(one, two) for one in range(4) for two in range(one)]
        expected += sum(
            cross_entropy(own[one], own[two], torch.sigmoid(asked[one] - asked[two])) for one, two in pairs
        ) / len(pairs)
        expected += (
            sum(
                cross_entropy(own[one], strange[two], torch.sigmoid(asked[one] - other[two] + STRANGE))
                for one in range(4)
                for two in range(4)
            )
            / 16
        )
        expected += PULL * (own.mean().item() - TYPICAL_SCORE) ** 2
    assert output.total.item() == pytest.approx(expected, rel=1e-4)


def test_the_logit_scale_is_fixed():
    model = new_clip(build_tokenizer(vocabulary()), 0)
    assert "logit_scale" not in trained_parameters(model)
    assert model.logit_scale.item() == pytest.approx(math.log(LOGIT_SCALE))
    assert sum(value.numel() for value in model.parameters()) <= 600_000
