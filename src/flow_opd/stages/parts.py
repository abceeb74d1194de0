"""What the parts of the miniature have in common: how long they train, and under which fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from flow_opd.config.common import EMASettings, OptimizerSettings
from flow_opd.config.miniature import MiniatureSettings, PartSettings
from flow_opd.files import write_json
from flow_opd.stages.training import train
from flow_opd.training.trainer import LoopSettings, Trainer

LOG_EVERY = 10  # steps between two lines of metrics.jsonl


def fingerprint(name: str, part: PartSettings, settings: MiniatureSettings) -> str:
    """Returns what checkpoints of a part carry; where files go does not matter."""
    relevant = {"seed": settings.run.seed, "pictures": settings.pictures, **part.model_dump()}
    return f"{name}-{hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]}"


def loop(part: PartSettings, settings: MiniatureSettings, *, ema_decay: float) -> LoopSettings:
    """Returns AdamW with a short warm-up and linear decay over the part's steps."""
    return LoopSettings(
        rounds=part.steps,
        optimizer=OptimizerSettings(
            learning_rate=part.learning_rate,
            warmup_steps=min(300, part.steps // 10),
            decay="linear",
            weight_decay=0.01,
        ),
        ema=EMASettings(decay=ema_decay, every=1),
        checkpoint=settings.checkpoint,
    )


def train_part(trainer: Trainer, title: str) -> None:
    """Trains a part to its end, from its newest checkpoint on."""
    train(trainer, title, show=("loss",), log_every=LOG_EVERY)


def summarise(trainer: Trainer, readings: Mapping[str, float] | None = None) -> None:
    """Writes summary.json: seconds, steps, and what was measured of the finished part."""
    progress = trainer.progress
    numbers = {"seconds": round(progress.seconds, 1), "steps": progress.step, **(readings or {})}
    write_json(trainer.folder / "summary.json", numbers)
