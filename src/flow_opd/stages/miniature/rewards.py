"""Builds the miniature's two learned rewards from seeds: the quality and the preference model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from diffusers import AutoencoderKL
from torch.nn import Parameter

from flow_opd.config.miniature import MiniatureSettings, PartSettings
from flow_opd.files import atomic_folder
from flow_opd.layout import SUMMARY
from flow_opd.miniature.judged import JudgedPictures, judged_pictures
from flow_opd.miniature.preference import (
    PreferenceBatches,
    PreferenceLoss,
    new_clip,
    preference_calibration,
    save_clip,
    trained_parameters,
)
from flow_opd.miniature.quality import QualityBatches, QualityLoss, new_quality_net, quality_calibration
from flow_opd.miniature.vocabulary import build_tokenizer, vocabulary
from flow_opd.protocols import BatchSource, Objective
from flow_opd.rewards.deqa import DeQAReward
from flow_opd.rewards.pickscore import PickScoreReward
from flow_opd.stages.miniature.base import build_autoencoder
from flow_opd.stages.miniature.parts import is_finished, loop, part_identity, summarise, train_part
from flow_opd.training.trainer import Trainer

# Captions, with four pictures each, and how many of them pass through the VAE, which costs the most. The
# quality model needs every kind of damage both ways; the preference model needs captions.
DRAWN = {
    "quality": {"train": (6_000, 6_000), "test": (300, 300)},
    "preference": {"train": (48_000, 16_000), "test": (300, 300)},
}


def judged(settings: MiniatureSettings, use: str, split: str) -> JudgedPictures:
    """Returns the pictures with known faults of a split; drawn once and kept on disk."""
    folder = settings.run.out / "judged" / use / split
    if not is_finished(folder, "judged", settings):
        vae = AutoencoderKL.from_pretrained(build_autoencoder(settings)).requires_grad_(False)
        count, rebuilt = DRAWN[use][split]
        differs = "all" if use == "quality" else None
        drawn = judged_pictures(settings.run.seed, split, count, vae=vae, rebuilt=rebuilt, differs=differs)
        with atomic_folder(folder) as staging:
            drawn.save(staging)
            (staging / SUMMARY).write_text(json.dumps({"identity": part_identity("judged", settings)}))
    return JudgedPictures.load(folder)


def build_quality(settings: MiniatureSettings) -> Path:
    """Trains the quality model and returns its folder; summary.json beside it says how it judges."""
    finished = settings.run.out / "deqa" / "model"
    if not is_finished(finished.parent, "deqa", settings):
        net = new_quality_net(settings.run.seed)
        trainer = _trainer(
            "deqa",
            settings.deqa,
            settings,
            parameters=dict(net.named_parameters()),
            source=QualityBatches(
                judged(settings, "quality", "train"), settings.deqa.batch_size, settings.run.seed
            ),
            objective=QualityLoss(net),
        )
        train_part(trainer, "quality model")
        assert trainer.average is not None
        with trainer.average.applied():
            net.save(finished)
        summarise(trainer, quality_calibration(DeQAReward(finished), judged(settings, "quality", "test")))
    return finished


def build_preference(settings: MiniatureSettings) -> Path:
    """Trains the preference model and returns its folder; summary.json beside it says how it judges."""
    finished = settings.run.out / "pickscore" / "model"
    if not is_finished(finished.parent, "pickscore", settings):
        tokenizer = build_tokenizer(vocabulary())
        model = new_clip(tokenizer, settings.run.seed)
        part = settings.pickscore
        trainer = _trainer(
            "pickscore",
            part,
            settings,
            parameters=trained_parameters(model),
            source=PreferenceBatches(
                judged(settings, "preference", "train"), tokenizer, part.batch_size, settings.run.seed
            ),
            objective=PreferenceLoss(model),
        )
        train_part(trainer, "preference model")
        assert trainer.average is not None
        with trainer.average.applied():
            save_clip(model, tokenizer, finished)
        summarise(
            trainer, preference_calibration(PickScoreReward(finished), judged(settings, "preference", "test"))
        )
    return finished


def _trainer(
    name: str,
    part: PartSettings,
    settings: MiniatureSettings,
    *,
    parameters: Mapping[str, Parameter],
    source: BatchSource,
    objective: Objective,
) -> Trainer:
    return Trainer(
        parameters=parameters,
        source=source,
        objective=objective,
        settings=loop(part, settings, ema_decay=0.99),
        folder=settings.run.out / name,
        identity=part_identity(name, settings),
    )
