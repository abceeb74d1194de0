"""How the quality model learns: pictures with known faults, and five levels with soft labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from flow_opd.miniature.autoencoder import as_pixels
from flow_opd.miniature.degradations import KINDS
from flow_opd.miniature.judged import CLEAN, FAULTS, JudgedPictures
from flow_opd.rewards.deqa import LEVELS, DeQAReward, QualityNet, expected_level
from flow_opd.seeding import derived_seed, generator
from flow_opd.types import LossOutput, Prompt

# Severity of the weakest and the strongest of a fault, where not 0 and 1: compression shows from the start,
# and latent noise comes out of the decoder as mild grain.
RANGES = {"clean": (0.0, 0.0), "compression": (0.15, 1.0), "unfinished": (0.0, 0.6), "blank": (1.0, 1.0)}


def severity(fault: NDArray[np.int64], strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns how bad pictures are, from 0 (clean) to 1, of any shape: equal numbers are about equally bad.

    Args:
        fault: index into `FAULTS`.
        strength: 0 to 1.
    """
    bounds = np.asarray([RANGES.get(name, (0.0, 1.0)) for name in FAULTS], np.float32)[fault]
    low, high = bounds[..., 0], bounds[..., 1]
    return (low + (high - low) * strength).astype(np.float32)


def soft_levels(level: Tensor) -> Tensor:
    """Returns the distribution over the five levels whose expectation is `level`, [B, 5], of [B] in [1, 5].

    Differs: DeQA-Score discretises a Gaussian of the raters' mean and variance (arXiv 2501.11561, section 3).
    Our truth has no variance, so the two neighbouring levels share the mass and the mean is exact.
    """
    grid = torch.arange(1, LEVELS + 1, dtype=level.dtype)
    return (1 - (level[:, None] - grid).abs()).clamp(min=0)


@dataclass(frozen=True)
class QualityBatch:
    """Pictures with their true levels."""

    pixels: Tensor  # [M, 3, 32, 32], in [-1, 1]
    level: Tensor  # [M], 1 to 5


@dataclass(frozen=True)
class QualityBatches:
    """Batches drawn by (seed, round): two thirds through the VAE; mirrored both ways."""

    judged: JudgedPictures
    batch_size: int
    seed: int

    @property
    def metrics(self) -> Mapping[str, float]:
        """Nothing beyond the loss."""
        return {}

    def round(self, index: int) -> Iterator[list[QualityBatch]]:
        """Yields the one update of round `index`."""
        draw = generator(self.seed, "deqa", index)
        captions, each = self.judged.fault.shape
        rows = torch.randint(captions, (self.batch_size,), generator=draw).numpy()
        which = torch.randint(each, (self.batch_size,), generator=draw).numpy()
        through_vae = (torch.rand(self.batch_size, generator=draw) < 2 / 3).numpy()
        sideways, upside_down = (torch.rand(2, self.batch_size, 1, 1, 1, generator=draw) < 0.5).numpy()
        rows, choice = self.judged.choose(rows, through_vae)
        pictures = choice[np.arange(self.batch_size), which]
        pictures = np.where(sideways, pictures[:, :, ::-1], pictures)
        pictures = np.where(upside_down, pictures[:, ::-1], pictures)
        level = 5 - 4 * severity(self.judged.fault[rows, which], self.judged.strength[rows, which])
        yield [QualityBatch(as_pixels(pictures), torch.from_numpy(level))]


class QualityLoss:
    """Cross-entropy between the network's levels and the soft labels: DeQA's KL up to a constant."""

    def __init__(self, net: QualityNet) -> None:
        """Takes the network to train."""
        self.net = net

    def __call__(self, batch: QualityBatch) -> LossOutput:
        """Returns the loss summed over pictures."""
        logits = self.net(batch.pixels)
        loss = functional.cross_entropy(logits, soft_levels(batch.level), reduction="sum")
        off = (expected_level(logits.detach()) - batch.level).abs().sum()
        return LossOutput(loss, len(batch.level), {"loss": loss.detach(), "off": off})


def new_quality_net(seed: int) -> QualityNet:
    """Returns an untrained quality model."""
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "quality net"))
        return QualityNet()


def quality_calibration(reward: DeQAReward, judged: JudgedPictures) -> dict[str, float]:
    """Returns Spearman's correlation of the scores with - strength, for each way a picture comes.

    Keys: "raw" and "rebuilt" over clean pictures and the four degradations, "raw_blur" and so on within one
    degradation; "raw_clean_mean" and "raw_worst_mean" are scores of clean and of hardly recognisable ones.
    """
    numbers: dict[str, float] = {}
    for way, pictures in (("raw", judged.pictures), ("rebuilt", judged.rebuilt)):
        fault = judged.fault[: len(pictures)].reshape(-1)
        strength = judged.strength[: len(pictures)].reshape(-1)
        images = torch.from_numpy(pictures.reshape(-1, *pictures.shape[2:])).permute(0, 3, 1, 2) / 255
        values = reward.score(images, [Prompt("", "quality")] * len(images)).values.numpy()
        clean = fault == FAULTS.index(CLEAN)
        # As many clean pictures as of each degradation: ties alone would lower the correlation.
        some = clean & (np.cumsum(clean) <= np.isin(fault, [FAULTS.index(kind) for kind in KINDS]).sum() / 4)
        of_kind = {kind: fault == FAULTS.index(kind) for kind in KINDS}
        chosen = some | np.any(list(of_kind.values()), axis=0)
        numbers[way] = float(spearmanr(values[chosen], -strength[chosen]).statistic)
        for kind, rows in of_kind.items():
            numbers[f"{way}_{kind}"] = float(spearmanr(values[rows], -strength[rows]).statistic)
        numbers[f"{way}_clean_mean"] = float(values[clean].mean())
        numbers[f"{way}_worst_mean"] = float(values[chosen & (strength > 0.8)].mean())
    return numbers
