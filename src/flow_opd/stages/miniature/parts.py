"""What the parts of the miniature have in common: how long they train, and under which part_identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from flow_opd.config.common import EMASettings, OptimizerSettings
from flow_opd.config.miniature import MiniatureSettings, Part, PartSettings
from flow_opd.errors import CheckpointError
from flow_opd.files import write_json
from flow_opd.layout import METRICS, SUMMARY
from flow_opd.training.progress import MetricsLog
from flow_opd.training.trainer import LoopSettings, Trainer, progress_of

LOG_EVERY = 10  # steps between two lines of metrics.jsonl


UPSTREAM: dict[str, tuple[Part, ...]] = {
    "data": (),
    "vae": (),
    "base": ("vae",),
    "refine": ("vae", "base"),
    "judged": ("vae",),
    "deqa": ("vae",),
    "pickscore": ("vae",),
}
"""What is built -> the parts that it is built on."""


def part_identity(name: str, settings: MiniatureSettings) -> str:
    """Returns what the files of a part carry: seed, pictures, and the settings of it and of its upstream."""
    parts: tuple[str, ...] = (*UPSTREAM[name], name)
    values = settings.model_dump(mode="json")
    relevant = [settings.run.seed, settings.pictures, *(values[part] for part in parts if part in values)]
    return f"{name}-{hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]}"


def is_finished(folder: Path, name: str, settings: MiniatureSettings) -> bool:
    """Says whether a part has been built into `folder`.

    Raises:
        CheckpointError: if it was built under other settings.
    """
    file, identity = folder / SUMMARY, part_identity(name, settings)
    if not file.exists():
        return False
    found = json.loads(file.read_text())["identity"]
    if found != identity:
        raise CheckpointError(
            f"{name!r} was built under other settings",
            value=f"{folder} of {found}",
            allowed=f"a part of {identity}",
            fix="restore the settings, choose another --out, or build again with --fresh",
        )
    return True


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
    assert trainer.folder is not None
    trainer.resume()
    log = MetricsLog(trainer.folder / METRICS, resume_step=trainer.progress.step, every=LOG_EVERY)
    trainer.callbacks.append(log)
    with progress_of(trainer, title, ("loss",)):
        trainer.run()


def summarise(trainer: Trainer, metrics: Mapping[str, float] | None = None) -> None:
    """Writes summary.json, which ends a part: its identity, seconds, steps, and what was measured of it."""
    progress = trainer.progress
    numbers = {"seconds": round(progress.seconds, 1), "steps": progress.step, **(metrics or {})}
    assert trainer.folder is not None
    write_json(trainer.folder / SUMMARY, {"identity": trainer.identity, **numbers})
