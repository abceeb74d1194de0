"""What every stage does around its work: open the run folder, resume, watch, save the adapter."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flow_opd.config.base import Settings
from flow_opd.config.common import PlaceSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import dump
from flow_opd.config.recorded import CONFIG, differences
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import CheckpointError
from flow_opd.files import write_json
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import Backbone
from flow_opd.training.progress import MetricsLog, ProgressBar
from flow_opd.training.trainer import LoopSettings, Trainer

if TYPE_CHECKING:  # it takes peft along, which merges, cards and releases do without
    from flow_opd.adapters.bank import AdapterBank

STUDENT = "student"
ADAPTER = "adapter"  # folder of the finished adapter, below the run folder
TRAINING = "training.json"  # seconds and steps of a finished training, below the run folder


def loop_settings(
    settings: DistillSettings | SFTSettings | TeacherSettings, updates_per_round: int, backbone: Backbone
) -> LoopSettings:
    """Returns how long a stage trains, how it steps and how often it is saved.

    On a base in float16 the loss is scaled by the number of latent dimensions, which it is divided by: what
    reaches the network then has the size of a velocity, where unscaled it would be lost below float16's
    smallest numbers.
    """
    dimensions = math.prod(backbone.latent_shape)
    return LoopSettings(
        rounds=settings.run.rounds,
        updates_per_round=updates_per_round,
        optimizer=settings.optimizer,
        ema=settings.ema,
        checkpoint=settings.checkpoint,
        loss_scale=float(dimensions) if settings.base.dtype == "float16" else 1.0,
    )


def open_run(run: PlaceSettings) -> Path:
    """Sets the processor threads and returns the run folder; nothing is written yet."""
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    return run.out


def record(settings: Settings, folder: Path, processes: Processes = ALONE) -> None:
    """Writes the resolved config.yaml; to be called once everything that can be refused has been built."""
    if processes.is_main:
        dump(settings, folder / CONFIG)


def resume_or_restart(trainer: Trainer, settings: Settings | None = None, *, resume: bool) -> None:
    """Goes back to the newest checkpoint, or forgets all of them.

    Args:
        trainer: ready to begin.
        settings: of the run; what differs from those in its folder is told where a resume is refused.
        resume: whether to go back.

    Raises:
        CheckpointError: if the checkpoint is damaged or of another training; the folder stays as it was.
    """
    if not resume and trainer.processes.is_main:
        shutil.rmtree(trainer.checkpoints.folder, ignore_errors=True)
    trainer.processes.wait()
    if not resume:
        return
    try:
        trainer.resume()
    except CheckpointError as refusal:
        found = [] if settings is None else differences(trainer.folder / CONFIG, settings)
        raise CheckpointError(
            f"{refusal} Differs: {'; '.join(found)}." if found else str(refusal)
        ) from refusal


def train(trainer: Trainer, title: str, *, show: Sequence[str], log_every: int = 1) -> None:
    """Trains to the end under a progress bar and a metrics log, from where the trainer stands."""
    done = trainer.progress.step
    if trainer.processes.is_main:
        trainer.callbacks += [
            MetricsLog(trainer.folder / "metrics.jsonl", resume_step=done, every=log_every),
            ProgressBar(title, total_steps=trainer.settings.total_steps, done=done, show=show),
        ]
    trainer.run()


def save_student(trainer: Trainer, bank: AdapterBank, *, base: str) -> Path:
    """Writes the trained adapter (its average, where there is one) as a PEFT folder and returns it."""
    folder = trainer.folder / ADAPTER
    if trainer.processes.is_main:
        with trainer.average.applied() if trainer.average else nullcontext():
            bank.save(STUDENT, folder, base_model=base)
        numbers = {
            "seconds": round(trainer.progress.seconds, 1),
            "steps": trainer.progress.step,
            "processes": trainer.processes.count,
        }
        write_json(trainer.folder / TRAINING, numbers)
    trainer.processes.wait()
    return folder
