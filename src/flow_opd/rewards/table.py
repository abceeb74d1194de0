"""Several rewards as one number per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flow_opd.errors import RewardError, explain
from flow_opd.protocols import Reward
from flow_opd.types import Prompt, RewardTable


class WeightedRewards:
    """total = sum_i weight_i reward_i; a reward that fails raises, and nothing is replaced by 0."""

    def __init__(self, rewards: Sequence[tuple[float, Reward]], *, must_apply: bool = False) -> None:
        """Takes [(weight, reward)]; every reward's own scale stays.

        Args:
            rewards: weights and rewards.
            must_apply: for training, where a prompt that a reward cannot judge is an error. An
                evaluation scores what applies and reports the rest as invalid.
        """
        self.rewards = list(rewards)
        self.must_apply = must_apply

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardTable:
        """Returns all scores of images [B, 3, height, width] in [0, 1], and their weighted total.

        Raises:
            RewardError: if a reward fails or returns another number of scores, or one that is not finite.
        """
        total = torch.zeros(len(prompts))
        valid = torch.ones(len(prompts), dtype=torch.bool)
        scores = {}
        for weight, reward in self.rewards:
            judged = reward.score(images, prompts)
            if judged.values.shape != total.shape or not bool(
                torch.isfinite(judged.values[judged.valid]).all()
            ):
                raise RewardError(
                    explain(
                        f"reward {reward.name!r} returned unusable scores",
                        value=judged.values.tolist()[:4],
                        allowed=f"{len(prompts)} finite numbers within {reward.scale}",
                        fix="check the reward's model and its prompts' metadata",
                    )
                )
            scores[reward.name] = judged
            total = total + weight * torch.where(judged.valid, judged.values, torch.zeros_like(judged.values))
            valid &= judged.valid
        if self.must_apply and not bool(valid.all()):
            stranger = prompts[int(torch.nonzero(~valid)[0])]
            raise RewardError(
                explain(
                    "a training reward does not apply to a prompt",
                    value=stranger.text,
                    allowed=f"prompts with the metadata that {', '.join(scores)} need",
                    fix="train on prompts of the reward's own task",
                )
            )
        return RewardTable(scores, total, valid)
