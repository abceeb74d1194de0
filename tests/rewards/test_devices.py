"""Networks of rewards compute on the device that they are given, in passes of any size; scores come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flow_opd.config.locations import asset_folder
from flow_opd.config.rewards import DeQASettings, PickScoreSettings
from flow_opd.rewards.colors import ColorClassifier
from flow_opd.types import Prompt

DEQA = DeQASettings(name="deqa", path="asset:rewards/deqa")
PICKSCORE = PickScoreSettings(name="pickscore", path="asset:rewards/pickscore")
NETWORKS = [DEQA, PICKSCORE]
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROMPTS = [Prompt(text, "preference") for text in ("a red circle", "blue", "a sign that says CAB", "x", "")]
CARD = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def test_weights_and_every_input_reach_the_device() -> None:
    """Meta tensors have no numbers, so the path ends where one is asked for, and not before.

    An input that stayed behind would end it earlier, with an error about two devices. DeQA gets as far as its
    scores. CLIP looks at the mask of the texts, when the pictures are through and the texts embedded.
    """
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        DEQA.build("meta").score(IMAGES, PROMPTS)
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        PICKSCORE.build("meta").score(IMAGES, PROMPTS)


def test_colours_are_asked_on_the_device() -> None:
    classifier = ColorClassifier(asset_folder() / "rewards" / "pickscore", device="meta")
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        classifier.name([np.zeros((20, 20, 3), np.uint8)], ["circle"])


@pytest.mark.skipif(CARD is None, reason="there is no accelerator")
@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_scores_of_a_card_are_those_of_the_cpu(spec) -> None:
    expected = spec.build().score(IMAGES, PROMPTS)
    found = spec.build(CARD).score(IMAGES.to(CARD), PROMPTS)
    assert found.values.device == torch.device("cpu")
    assert torch.allclose(found.values, expected.values, atol=2e-2)
    assert torch.equal(found.valid, expected.valid)


def test_the_batch_size_of_the_settings_is_that_of_a_pass() -> None:
    whole, passes = PICKSCORE.build(), PICKSCORE.model_copy(update={"batch_size": 2}).build()
    seen: list[int] = []
    passes.clip.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    scores = passes.score(IMAGES, PROMPTS)
    assert seen == [2, 2, 1]
    assert torch.allclose(scores.values, whole.score(IMAGES, PROMPTS).values, atol=1e-3)
